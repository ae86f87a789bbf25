# The whole stack: nbdkit with the plugin, varved, and the clients that people use.
e2e_tests = \
	%D%/test_access.py \
	%D%/test_bad_input.py \
	%D%/test_bitmap_model.py \
	%D%/test_bitmaps.py \
	%D%/test_block_device.py \
	%D%/test_block_exports.py \
	%D%/test_checkpoint_files.py \
	%D%/test_clients.py \
	%D%/test_contexts.py \
	%D%/test_daemon_edges.py \
	%D%/test_daemon_kill.py \
	%D%/test_deltas.py \
	%D%/test_diff.py \
	%D%/test_diff_cli.py \
	%D%/test_failed_reads.py \
	%D%/test_failing_files.py \
	%D%/test_foreign.py \
	%D%/test_freeze.py \
	%D%/test_full.py \
	%D%/test_garbage.py \
	%D%/test_job_kill_steps.py \
	%D%/test_jobs.py \
	%D%/test_jobs_tls.py \
	%D%/test_kill_loop.py \
	%D%/test_kill_steps.py \
	%D%/test_leftovers.py \
	%D%/test_listeners.py \
	%D%/test_lost_writes.py \
	%D%/test_load.py \
	%D%/test_map.py \
	%D%/test_maps.py \
	%D%/test_metrics.py \
	%D%/test_model.py \
	%D%/test_no_descriptors.py \
	%D%/test_no_memory.py \
	%D%/test_no_runtime.py \
	%D%/test_older_folder.py \
	%D%/test_move.py \
	%D%/test_oracle.py \
	%D%/test_page_cache.py \
	%D%/test_point_in_time.py \
	%D%/test_programs.py \
	%D%/test_pull_resumes.py \
	%D%/test_push.py \
	%D%/test_queries.py \
	%D%/test_races.py \
	%D%/test_recipes.py \
	%D%/test_release.py \
	%D%/test_resize.py \
	%D%/test_restore.py \
	%D%/test_scratch.py \
	%D%/test_service.py \
	%D%/test_stalled_client.py \
	%D%/test_stalled_peer.py \
	%D%/test_throttle.py \
	%D%/test_transaction.py \
	%D%/test_two_disks.py \
	%D%/test_upgrade.py \
	%D%/test_versions.py \
	%D%/test_web.py
TESTS += $(e2e_tests)
EXTRA_DIST += \
	$(e2e_tests) \
	%D%/backups.py \
	%D%/chain.py \
	%D%/crowd.py \
	%D%/dying.py \
	%D%/failing.py \
	%D%/bitmaps.py \
	%D%/foreign.py \
	%D%/harness.py \
	%D%/held.py \
	%D%/incremental.py \
	%D%/jobs.py \
	%D%/join.py \
	%D%/killing.py \
	%D%/lossy.py \
	%D%/nbdclient.py \
	%D%/preloaded.py \
	%D%/prometheus.py \
	%D%/qmpclient.py \
	%D%/rawhttp.py \
	%D%/releases.py \
	%D%/smallfs.py \
	%D%/starving.py \
	%D%/replay.py \
	%D%/tap.py \
	%D%/writers.py
# Preloaded into nbdkit (and die.la into varved) by tests; the -rpath makes libtool build it shared.
check_LTLIBRARIES += %D%/hold.la
%C%_hold_la_SOURCES = %D%/hold.c
%C%_hold_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
%C%_hold_la_LIBADD = -ldl
if HAVE_FUSE3
check_PROGRAMS += %D%/lossfs
endif
%C%_lossfs_SOURCES = %D%/lossfs.c
%C%_lossfs_CFLAGS = $(AM_CFLAGS) $(FUSE3_CFLAGS)
%C%_lossfs_LDADD = $(FUSE3_LIBS)
check_LTLIBRARIES += %D%/fail.la
%C%_fail_la_SOURCES = %D%/fail.c %D%/orders.h
%C%_fail_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
%C%_fail_la_LIBADD = -ldl
check_LTLIBRARIES += %D%/clock.la
%C%_clock_la_SOURCES = %D%/clock.c %D%/orders.h
%C%_clock_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
%C%_clock_la_LIBADD = -ldl
check_LTLIBRARIES += %D%/starve.la
%C%_starve_la_SOURCES = %D%/starve.c %D%/orders.h
%C%_starve_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
%C%_starve_la_LIBADD = -ldl
check_LTLIBRARIES += %D%/die.la
%C%_die_la_SOURCES = %D%/die.c %D%/orders.h
%C%_die_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
%C%_die_la_LIBADD = -ldl
THREAD_TESTS += \
	%D%/test_daemon_kill.py \
	%D%/test_jobs.py \
	%D%/test_point_in_time.py \
	%D%/test_races.py \
	%D%/test_two_disks.py
