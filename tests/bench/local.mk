# Measurements: run by hand, see the top of each.  Their programs are built for make check, where
# tests/e2e/test_load.py uses one.
check_PROGRAMS += %D%/busy
%C%_busy_SOURCES = %D%/busy.c
EXTRA_DIST += %D%/load.py %D%/write_cost.py
