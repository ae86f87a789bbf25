# The demo is a test, too; README's command runs it by itself.
TESTS += %D%/test_demo.py
EXTRA_DIST += \
	tests/demo.sh \
	%D%/ledger.py \
	%D%/test_demo.py
