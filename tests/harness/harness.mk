# How tests are run: the driver, their environment, and the checks of the tree itself.

TEST_EXTENSIONS = .py .sh
LOG_DRIVER = $(PYTHON) $(top_srcdir)/tests/harness/driver.py
PY_LOG_DRIVER = $(LOG_DRIVER)
PY_LOG_COMPILER = $(PYTHON)
SH_LOG_DRIVER = $(LOG_DRIVER)
SH_LOG_COMPILER = $(SHELL)

# What a test finds in its environment; TMPDIR is a folder of its own, see driver.py.
AM_TESTS_ENVIRONMENT = \
	top_srcdir='$(top_srcdir)'; export top_srcdir; \
	top_builddir='$(top_builddir)'; export top_builddir; \
	abs_top_srcdir='$(abs_top_srcdir)'; export abs_top_srcdir; \
	abs_top_builddir='$(abs_top_builddir)'; export abs_top_builddir; \
	ALL_TESTS='$(TESTS)'; export ALL_TESTS; \
	PYTHON='$(PYTHON)'; export PYTHON; \
	SANITIZER='$(SANITIZER)'; export SANITIZER; \
	VARVE_NBDKIT='$(NBDKIT)'; export VARVE_NBDKIT; \
	VARVE_PRELOAD='$(SANITIZER_PRELOAD)'; export VARVE_PRELOAD; \
	test -z "$$VARVE_PRELOAD" || \
		VARVE_PRELOAD="$$VARVE_PRELOAD:$(abs_top_builddir)/tests/harness/.libs/keep-locale.so"; \
	test -z "$$VARVE_PRELOAD" || PATH="$(abs_top_srcdir)/tests/harness:$$PATH"; \
	ASAN_OPTIONS="$${ASAN_OPTIONS-detect_stack_use_after_return=1}"; export ASAN_OPTIONS; \
	UBSAN_OPTIONS="$${UBSAN_OPTIONS-print_stacktrace=1}"; export UBSAN_OPTIONS; \
	TSAN_OPTIONS="suppressions=$(abs_top_srcdir)/tests/harness/tsan.supp:second_deadlock_stack=1"; export TSAN_OPTIONS;

# Preloaded by %D%/nbdkit; the -rpath makes libtool build it shared.
check_LTLIBRARIES += tests/harness/keep-locale.la
tests_harness_keep_locale_la_SOURCES = %D%/keep-locale.c
tests_harness_keep_locale_la_CFLAGS = $(WARN_CFLAGS)
tests_harness_keep_locale_la_LDFLAGS = -module -avoid-version -shared -rpath /nowhere

# The tests that are about threads: what ThreadSanitizer is asked to judge.
THREAD_TESTS =
check-threads: all
	$(MAKE) $(AM_MAKEFLAGS) check TESTS='$(THREAD_TESTS)'
.PHONY: check-threads

TESTS += %D%/test_driver.py
EXTRA_DIST += \
	%D%/test_driver.py \
	.ci/run \
	.clang-format \
	CONTRIBUTING.md \
	HACKING \
	LICENSE \
	NEWS.md \
	README.md \
	SECURITY.md \
	tests/SKIPS \
	tests/build.sh \
	tests/deps.sh \
	tests/packages.sh \
	tests/run.sh \
	%D%/count.py \
	%D%/driver.py \
	%D%/nbdkit \
	%D%/tsan.supp
