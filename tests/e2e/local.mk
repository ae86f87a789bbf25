# The whole stack: nbdkit with the plugin, varved, and the clients that people use.
e2e_tests = \
	%D%/test_bad_input.py \
	%D%/test_clients.py \
	%D%/test_daemon_kill.py \
	%D%/test_freeze.py \
	%D%/test_garbage.py \
	%D%/test_leftovers.py \
	%D%/test_map.py \
	%D%/test_oracle.py \
	%D%/test_point_in_time.py \
	%D%/test_programs.py \
	%D%/test_stalled_client.py \
	%D%/test_two_disks.py
TESTS += $(e2e_tests)
EXTRA_DIST += \
	$(e2e_tests) \
	%D%/backups.py \
	%D%/harness.py \
	%D%/incremental.py \
	%D%/nbdclient.py \
	%D%/qmpclient.py \
	%D%/replay.py \
	%D%/tap.py \
	%D%/writers.py
THREAD_TESTS += \
	%D%/test_daemon_kill.py \
	%D%/test_point_in_time.py \
	%D%/test_two_disks.py
