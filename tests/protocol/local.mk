# The NBD server's wire, judged by the protocol document (tests/server/nbd-fixture serves).
TESTS += \
	%D%/test_access.py \
	%D%/test_clients.py \
	%D%/test_errors.py \
	%D%/test_extended.py \
	%D%/test_handshake.py \
	%D%/test_hostile.py \
	%D%/test_info.py \
	%D%/test_isolation.py \
	%D%/test_limits.py \
	%D%/test_list.py \
	%D%/test_lost.py \
	%D%/test_metactx.py \
	%D%/test_mutants.py \
	%D%/test_options.py \
	%D%/test_read.py \
	%D%/test_shutdown.py \
	%D%/test_status.py \
	%D%/test_tls.py \
	%D%/test_tls_haggling.py \
	%D%/test_tls_transmission.py \
	%D%/test_writes.py
EXTRA_DIST += \
	%D%/fake.py \
	%D%/nbdtest.py \
	%D%/nbdwire.py \
	%D%/run \
	%D%/test_access.py \
	%D%/test_clients.py \
	%D%/test_errors.py \
	%D%/test_extended.py \
	%D%/test_handshake.py \
	%D%/test_hostile.py \
	%D%/test_info.py \
	%D%/test_isolation.py \
	%D%/test_limits.py \
	%D%/test_list.py \
	%D%/test_lost.py \
	%D%/test_metactx.py \
	%D%/test_mutants.py \
	%D%/test_options.py \
	%D%/test_read.py \
	%D%/test_shutdown.py \
	%D%/test_status.py \
	%D%/test_tls.py \
	%D%/test_tls_haggling.py \
	%D%/test_tls_transmission.py \
	%D%/test_writes.py \
	%D%/tlslib.py \
	%D%/tlssock.py
THREAD_TESTS += \
	%D%/test_clients.py \
	%D%/test_errors.py \
	%D%/test_hostile.py \
	%D%/test_limits.py \
	%D%/test_lost.py \
	%D%/test_read.py \
	%D%/test_shutdown.py \
	%D%/test_status.py \
	%D%/test_tls.py
