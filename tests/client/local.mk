# The command line: alone, against a control socket and NBD servers that answer as told, and against
# nbdkit and qemu-nbd.
client_tests = \
	%D%/test_completion.py \
	%D%/test_control.py \
	%D%/test_delta.py \
	%D%/test_map.py \
	%D%/test_pull.py \
	%D%/test_pull_again.py \
	%D%/test_top.py \
	%D%/test_watching.py
TESTS += $(client_tests)
EXTRA_DIST += \
	$(client_tests) \
	%D%/fakenbd.py \
	%D%/fakevarved.py \
	%D%/harness.py \
	%D%/terminal.py
THREAD_TESTS += \
	%D%/test_delta.py \
	%D%/test_pull.py \
	%D%/test_pull_again.py
