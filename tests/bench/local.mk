# Measurements: "make bench" runs tests/bench/bench.py, the others are run by hand, see the top of
# each.  Their programs are built for make check, where tests/e2e/test_load.py uses one.
check_PROGRAMS += %D%/busy %D%/pause %D%/walk
%C%_busy_SOURCES = %D%/busy.c %D%/peer.c %D%/peer.h
%C%_pause_SOURCES = %D%/pause.c %D%/peer.c %D%/peer.h
%C%_walk_SOURCES = %D%/walk.c %D%/peer.c %D%/peer.h
EXTRA_DIST += %D%/bench.py %D%/durability_cost.py %D%/load.py %D%/peers.py %D%/plots.py %D%/rows_pull.py %D%/rows_read.py \
	%D%/rows_scale.py %D%/rows_write.py %D%/write_cost.py

.PHONY: bench
bench: all tests/bench/pause tests/bench/walk
	@for p in fio nbdkit nbdcopy qemu-storage-daemon certtool; do command -v $$p >/dev/null || \
	    { echo "make bench wants $$p: tests/deps.sh bench"; exit 1; }; done
	VARVE_BUILD=$(abs_top_builddir) $(PYTHON) $(srcdir)/tests/bench/bench.py $(BENCH)
