# The plugin as a data plugin of nbdkit; it uses tests/e2e/harness.py.
TESTS += %D%/test_plugin.py
EXTRA_DIST += %D%/test_plugin.py
THREAD_TESTS += %D%/test_plugin.py
