
check_PROGRAMS += %D%/unit/test-qmp
%C%_unit_test_qmp_SOURCES = %D%/unit/test-qmp.c
%C%_unit_test_qmp_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_qmp_LDADD = lib/libvarve.la $(JANSSON_LIBS) $(CMOCKA_LIBS)
TESTS += %D%/unit/test-qmp

check_PROGRAMS += %D%/unit/test-nbd-proto
%C%_unit_test_nbd_proto_SOURCES = %D%/unit/test-nbd-proto.c
%C%_unit_test_nbd_proto_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_nbd_proto_LDADD = lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-nbd-proto

check_PROGRAMS += %D%/server/nbd-fixture
%C%_server_nbd_fixture_SOURCES = %D%/server/nbd-fixture.c
%C%_server_nbd_fixture_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS)
%C%_server_nbd_fixture_LDFLAGS = -Wl,--wrap=malloc -Wl,--wrap=calloc -Wl,--wrap=realloc
%C%_server_nbd_fixture_LDADD = server/libnbdserver.la $(LIBUV_LIBS)

# Fixtures: directories, worlds that fail, disks.
check_LTLIBRARIES += %D%/lib/libtest.la
%C%_lib_libtest_la_SOURCES = \
	%D%/lib/core-fixture.c \
	%D%/lib/core-fixture.h \
	%D%/lib/disk-fixture.c \
	%D%/lib/disk-fixture.h \
	%D%/lib/fault-world.c \
	%D%/lib/fault-world.h \
	%D%/lib/held-sync.c \
	%D%/lib/held-sync.h \
	%D%/lib/power-world.c \
	%D%/lib/power-world.h \
	%D%/lib/sim-death.c \
	%D%/lib/sim-disk.c \
	%D%/lib/sim-disk.h \
	%D%/lib/sim-world.c \
	%D%/lib/sim-world.h \
	%D%/lib/tmpdir.c \
	%D%/lib/tmpdir.h

check_PROGRAMS += %D%/unit/test-block
%C%_unit_test_block_SOURCES = %D%/unit/test-block.c
%C%_unit_test_block_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_block_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-block

check_PROGRAMS += %D%/unit/test-bitmap
%C%_unit_test_bitmap_SOURCES = %D%/unit/test-bitmap.c
%C%_unit_test_bitmap_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_bitmap_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-bitmap

check_PROGRAMS += %D%/unit/test-no-memory
%C%_unit_test_no_memory_SOURCES = %D%/unit/test-no-memory.c %D%/fuzz/alloc.c %D%/fuzz/alloc.h
%C%_unit_test_no_memory_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_no_memory_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_WRAP)
%C%_unit_test_no_memory_LDADD = lib/libvarve.la $(JANSSON_LIBS) $(CMOCKA_LIBS)
TESTS += %D%/unit/test-no-memory

check_PROGRAMS += %D%/unit/test-paths
%C%_unit_test_paths_SOURCES = %D%/unit/test-paths.c
%C%_unit_test_paths_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_paths_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-paths

check_PROGRAMS += %D%/unit/test-identity
%C%_unit_test_identity_SOURCES = %D%/unit/test-identity.c
%C%_unit_test_identity_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_identity_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-identity

check_PROGRAMS += %D%/unit/test-image-witness
%C%_unit_test_image_witness_SOURCES = %D%/unit/test-image-witness.c
%C%_unit_test_image_witness_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_image_witness_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-image-witness

check_PROGRAMS += %D%/unit/test-epoch-file
%C%_unit_test_epoch_file_SOURCES = %D%/unit/test-epoch-file.c
%C%_unit_test_epoch_file_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_epoch_file_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-epoch-file

check_PROGRAMS += %D%/unit/test-epoch-list
%C%_unit_test_epoch_list_SOURCES = %D%/unit/test-epoch-list.c
%C%_unit_test_epoch_list_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_epoch_list_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-epoch-list

check_PROGRAMS += %D%/unit/test-epoch-table
%C%_unit_test_epoch_table_SOURCES = %D%/unit/test-epoch-table.c
%C%_unit_test_epoch_table_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_epoch_table_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-epoch-table

check_PROGRAMS += %D%/unit/test-link-proto
%C%_unit_test_link_proto_SOURCES = %D%/unit/test-link-proto.c
%C%_unit_test_link_proto_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_link_proto_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-link-proto

check_PROGRAMS += %D%/unit/test-timeline
%C%_unit_test_timeline_SOURCES = %D%/unit/test-timeline.c
%C%_unit_test_timeline_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_timeline_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-timeline

check_PROGRAMS += %D%/unit/test-world
%C%_unit_test_world_SOURCES = %D%/unit/test-world.c
%C%_unit_test_world_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_world_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-world

check_PROGRAMS += %D%/unit/test-slot-file
%C%_unit_test_slot_file_SOURCES = %D%/unit/test-slot-file.c
%C%_unit_test_slot_file_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_slot_file_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-slot-file

check_PROGRAMS += %D%/unit/test-catalogue
%C%_unit_test_catalogue_SOURCES = %D%/unit/test-catalogue.c
%C%_unit_test_catalogue_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_catalogue_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-catalogue

check_PROGRAMS += %D%/unit/test-change-set
%C%_unit_test_change_set_SOURCES = %D%/unit/test-change-set.c
%C%_unit_test_change_set_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_change_set_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-change-set

check_PROGRAMS += %D%/unit/test-blocks-file
%C%_unit_test_blocks_file_SOURCES = %D%/unit/test-blocks-file.c
%C%_unit_test_blocks_file_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_blocks_file_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-blocks-file

check_PROGRAMS += %D%/unit/test-bulk
%C%_unit_test_bulk_SOURCES = %D%/unit/test-bulk.c
%C%_unit_test_bulk_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_bulk_LDADD = lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-bulk

check_PROGRAMS += %D%/unit/test-checkpoint-file
%C%_unit_test_checkpoint_file_SOURCES = %D%/unit/test-checkpoint-file.c
%C%_unit_test_checkpoint_file_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_checkpoint_file_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-checkpoint-file

check_PROGRAMS += %D%/unit/test-delta-file
%C%_unit_test_delta_file_SOURCES = %D%/unit/test-delta-file.c
%C%_unit_test_delta_file_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_delta_file_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-delta-file

check_PROGRAMS += %D%/unit/test-digest
%C%_unit_test_digest_SOURCES = %D%/unit/test-digest.c
%C%_unit_test_digest_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_digest_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-digest

check_PROGRAMS += %D%/unit/test-gate
%C%_unit_test_gate_SOURCES = %D%/unit/test-gate.c
%C%_unit_test_gate_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_gate_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-gate
THREAD_TESTS += %D%/unit/test-gate

check_PROGRAMS += %D%/unit/test-map-memory
%C%_unit_test_map_memory_SOURCES = %D%/unit/test-map-memory.c
%C%_unit_test_map_memory_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_map_memory_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-map-memory

check_PROGRAMS += %D%/unit/test-tracker
%C%_unit_test_tracker_SOURCES = %D%/unit/test-tracker.c
%C%_unit_test_tracker_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_tracker_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-tracker

check_PROGRAMS += %D%/unit/test-parse
%C%_unit_test_parse_SOURCES = %D%/unit/test-parse.c
%C%_unit_test_parse_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_parse_LDADD = server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-parse

check_PROGRAMS += %D%/unit/test-dirt-rate
%C%_unit_test_dirt_rate_SOURCES = %D%/unit/test-dirt-rate.c
%C%_unit_test_dirt_rate_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_dirt_rate_LDADD = server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-dirt-rate

check_PROGRAMS += %D%/unit/test-journal
%C%_unit_test_journal_SOURCES = %D%/unit/test-journal.c
%C%_unit_test_journal_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_journal_LDADD = %D%/lib/libtest.la server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-journal

check_PROGRAMS += %D%/unit/test-failed-reads
%C%_unit_test_failed_reads_SOURCES = %D%/unit/test-failed-reads.c
%C%_unit_test_failed_reads_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_failed_reads_LDADD = %D%/lib/libtest.la server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-failed-reads

check_PROGRAMS += %D%/unit/test-changed
%C%_unit_test_changed_SOURCES = %D%/unit/test-changed.c
%C%_unit_test_changed_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_changed_LDADD = server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-changed

check_PROGRAMS += %D%/unit/test-map-cache
%C%_unit_test_map_cache_SOURCES = %D%/unit/test-map-cache.c
%C%_unit_test_map_cache_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_map_cache_LDADD = server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-map-cache

check_PROGRAMS += %D%/unit/test-http-request
%C%_unit_test_http_request_SOURCES = %D%/unit/test-http-request.c
%C%_unit_test_http_request_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_http_request_LDADD = server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-http-request

check_PROGRAMS += %D%/unit/test-access
%C%_unit_test_access_SOURCES = %D%/unit/test-access.c
%C%_unit_test_access_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_access_LDADD = server/libnbdserver.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-access

check_PROGRAMS += %D%/unit/test-nbd-listen
%C%_unit_test_nbd_listen_SOURCES = %D%/unit/test-nbd-listen.c
%C%_unit_test_nbd_listen_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS)
%C%_unit_test_nbd_listen_LDADD = server/libnbdserver.la %D%/lib/libtest.la lib/libvarve.la \
	$(CMOCKA_LIBS) $(LIBUV_LIBS) $(GNUTLS_LIBS)
TESTS += %D%/unit/test-nbd-listen
THREAD_TESTS += %D%/unit/test-nbd-listen

check_PROGRAMS += %D%/unit/test-throttle
%C%_unit_test_throttle_SOURCES = %D%/unit/test-throttle.c
%C%_unit_test_throttle_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_throttle_LDADD = server/libnbdserver.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-throttle
THREAD_TESTS += %D%/unit/test-throttle

check_PROGRAMS += %D%/unit/test-tls-session
%C%_unit_test_tls_session_SOURCES = %D%/unit/test-tls-session.c
%C%_unit_test_tls_session_CFLAGS = $(AM_CFLAGS) $(GNUTLS_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_tls_session_LDADD = server/libnbdserver.la $(GNUTLS_LIBS) $(CMOCKA_LIBS)
TESTS += %D%/unit/test-tls-session

check_PROGRAMS += %D%/unit/test-quiet-io
%C%_unit_test_quiet_io_SOURCES = %D%/unit/test-quiet-io.c
%C%_unit_test_quiet_io_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_quiet_io_LDADD = server/libvarved.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-quiet-io

check_PROGRAMS += %D%/server/endpoint-fixture
%C%_server_endpoint_fixture_SOURCES = %D%/server/endpoint-fixture.c
%C%_server_endpoint_fixture_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS)
%C%_server_endpoint_fixture_LDADD = server/libvarved.la $(LIBUV_LIBS)

server_tests = \
	%D%/server/test_argument_errors.py \
	%D%/server/test_backup_life.py \
	%D%/server/test_control.py \
	%D%/server/test_endpoint.py \
	%D%/server/test_estimate.py \
	%D%/server/test_freeze_hook.py \
	%D%/server/test_many_checkpoints.py
TESTS += $(server_tests)
EXTRA_DIST += $(server_tests)
THREAD_TESTS += $(server_tests)

check_PROGRAMS += %D%/unit/test-private
%C%_unit_test_private_SOURCES = %D%/unit/test-private.c
%C%_unit_test_private_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_private_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-private

check_PROGRAMS += %D%/unit/test-room
%C%_unit_test_room_SOURCES = %D%/unit/test-room.c
%C%_unit_test_room_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_room_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-room
THREAD_TESTS += %D%/unit/test-room

check_PROGRAMS += %D%/unit/test-intent-log
%C%_unit_test_intent_log_SOURCES = %D%/unit/test-intent-log.c
%C%_unit_test_intent_log_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_intent_log_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-intent-log

check_PROGRAMS += %D%/unit/test-cooling
%C%_unit_test_cooling_SOURCES = %D%/unit/test-cooling.c
%C%_unit_test_cooling_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_cooling_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-cooling
THREAD_TESTS += %D%/unit/test-cooling

check_PROGRAMS += %D%/unit/test-release
%C%_unit_test_release_SOURCES = %D%/unit/test-release.c
%C%_unit_test_release_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_release_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-release
THREAD_TESTS += %D%/unit/test-release

check_PROGRAMS += %D%/unit/test-view
%C%_unit_test_view_SOURCES = %D%/unit/test-view.c
%C%_unit_test_view_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_view_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-view

check_PROGRAMS += %D%/unit/test-tracker-death
%C%_unit_test_tracker_death_SOURCES = %D%/unit/test-tracker-death.c
%C%_unit_test_tracker_death_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_tracker_death_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-tracker-death

check_PROGRAMS += %D%/unit/test-text
%C%_unit_test_text_SOURCES = %D%/unit/test-text.c
%C%_unit_test_text_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_text_LDADD = lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-text

check_PROGRAMS += %D%/unit/test-threads
%C%_unit_test_threads_SOURCES = %D%/unit/test-threads.c
%C%_unit_test_threads_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_threads_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/unit/test-threads
THREAD_TESTS += %D%/unit/test-threads

check_PROGRAMS += %D%/sim/test-model
%C%_sim_test_model_SOURCES = %D%/sim/test-model.c
%C%_sim_test_model_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_sim_test_model_LDADD = %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/sim/test-model

# Lives of a disk in a machine in memory.
check_LTLIBRARIES += %D%/sim/libcrash.la
%C%_sim_libcrash_la_SOURCES = \
	%D%/sim/crash-backup.c \
	%D%/sim/crash-check.c \
	%D%/sim/crash-doubt.c \
	%D%/sim/crash-guest.c \
	%D%/sim/crash-life.c \
	%D%/sim/crash-life.h
%C%_sim_libcrash_la_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)

check_PROGRAMS += %D%/sim/test-crash
%C%_sim_test_crash_SOURCES = %D%/sim/test-crash.c
%C%_sim_test_crash_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_sim_test_crash_LDADD = %D%/sim/libcrash.la %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/sim/test-crash

check_PROGRAMS += %D%/sim/test-crash-cases
%C%_sim_test_crash_cases_SOURCES = %D%/sim/test-crash-cases.c
%C%_sim_test_crash_cases_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
%C%_sim_test_crash_cases_LDADD = %D%/sim/libcrash.la %D%/lib/libtest.la lib/libvarve.la $(CMOCKA_LIBS)
TESTS += %D%/sim/test-crash-cases
