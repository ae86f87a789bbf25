# Fuzz targets, see fuzz.h.  Each is linked with replay.c into a test that runs its corpus, and after
# ./configure --enable-fuzzers CC=clang by `make fuzzers` with libFuzzer (run.sh does both).

FUZZ_CFLAGS = \
	$(AM_CFLAGS) $(LIBUV_CFLAGS) $(JANSSON_CFLAGS) $(LIBNBD_CFLAGS) $(GNUTLS_CFLAGS)
FUZZ_CORE = tests/lib/libtest.la lib/libvarve.la
FUZZ_WRAP = -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=strdup
FUZZERS =
fuzzers: $(FUZZERS)
.PHONY: fuzzers

check_PROGRAMS += %D%/replay-access
%C%_replay_access_SOURCES = %D%/replay.c %D%/fuzz.h %D%/access.c
%C%_replay_access_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"access"'
%C%_replay_access_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_access_LDADD = server/libnbdserver.la $(FUZZ_CORE) $(LIBUV_LIBS)
TESTS += %D%/replay-access
FUZZERS += %D%/fuzz-access
EXTRA_PROGRAMS += %D%/fuzz-access
%C%_fuzz_access_SOURCES = %D%/fuzz.h %D%/access.c
%C%_fuzz_access_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_access_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_access_LDADD = server/libnbdserver.la $(FUZZ_CORE) $(LIBUV_LIBS)

check_PROGRAMS += %D%/replay-catalogue
%C%_replay_catalogue_SOURCES = %D%/replay.c %D%/fuzz.h %D%/catalogue.c
%C%_replay_catalogue_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"catalogue"'
%C%_replay_catalogue_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_catalogue_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-catalogue
FUZZERS += %D%/fuzz-catalogue
EXTRA_PROGRAMS += %D%/fuzz-catalogue
%C%_fuzz_catalogue_SOURCES = %D%/fuzz.h %D%/catalogue.c
%C%_fuzz_catalogue_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_catalogue_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_catalogue_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-checkpoint-file
%C%_replay_checkpoint_file_SOURCES = %D%/replay.c %D%/fuzz.h %D%/checkpoint-file.c %D%/world.c %D%/world.h
%C%_replay_checkpoint_file_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"checkpoint-file"'
%C%_replay_checkpoint_file_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_checkpoint_file_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-checkpoint-file
FUZZERS += %D%/fuzz-checkpoint-file
EXTRA_PROGRAMS += %D%/fuzz-checkpoint-file
%C%_fuzz_checkpoint_file_SOURCES = %D%/fuzz.h %D%/checkpoint-file.c %D%/world.c %D%/world.h
%C%_fuzz_checkpoint_file_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_checkpoint_file_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_checkpoint_file_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-client-status
%C%_replay_client_status_SOURCES = %D%/replay.c %D%/fuzz.h %D%/client-status.c client/nbd-status.c
%C%_replay_client_status_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"client-status"'
%C%_replay_client_status_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_client_status_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-client-status
FUZZERS += %D%/fuzz-client-status
EXTRA_PROGRAMS += %D%/fuzz-client-status
%C%_fuzz_client_status_SOURCES = %D%/fuzz.h %D%/client-status.c client/nbd-status.c
%C%_fuzz_client_status_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_client_status_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_client_status_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-control
%C%_replay_control_SOURCES = %D%/replay.c %D%/fuzz.h \
	%D%/control.c %D%/alloc.c %D%/alloc.h %D%/peer.c %D%/peer.h \
	%D%/peer-tls.c %D%/peer-tls.h %D%/world.c %D%/world.h
%C%_replay_control_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"control"'
%C%_replay_control_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_control_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_WRAP)
%C%_replay_control_LDADD = \
	server/libvarved.la $(FUZZ_CORE) $(LIBUV_LIBS) $(JANSSON_LIBS) $(GNUTLS_LIBS)
TESTS += %D%/replay-control
THREAD_TESTS += %D%/replay-control
FUZZERS += %D%/fuzz-control
EXTRA_PROGRAMS += %D%/fuzz-control
%C%_fuzz_control_SOURCES = %D%/fuzz.h \
	%D%/control.c %D%/alloc.c %D%/alloc.h %D%/peer.c %D%/peer.h \
	%D%/peer-tls.c %D%/peer-tls.h %D%/world.c %D%/world.h
%C%_fuzz_control_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_control_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_WRAP) -fsanitize=fuzzer
%C%_fuzz_control_LDADD = \
	server/libvarved.la $(FUZZ_CORE) $(LIBUV_LIBS) $(JANSSON_LIBS) $(GNUTLS_LIBS)

check_PROGRAMS += %D%/replay-delta-file
%C%_replay_delta_file_SOURCES = %D%/replay.c %D%/fuzz.h %D%/delta-file.c %D%/world.c %D%/world.h
%C%_replay_delta_file_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"delta-file"'
%C%_replay_delta_file_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_delta_file_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-delta-file
FUZZERS += %D%/fuzz-delta-file
EXTRA_PROGRAMS += %D%/fuzz-delta-file
%C%_fuzz_delta_file_SOURCES = %D%/fuzz.h %D%/delta-file.c %D%/world.c %D%/world.h
%C%_fuzz_delta_file_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_delta_file_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_delta_file_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-http-request
%C%_replay_http_request_SOURCES = %D%/replay.c %D%/fuzz.h %D%/http-request.c
%C%_replay_http_request_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"http-request"'
%C%_replay_http_request_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_http_request_LDADD = server/libvarved.la $(FUZZ_CORE)
TESTS += %D%/replay-http-request
FUZZERS += %D%/fuzz-http-request
EXTRA_PROGRAMS += %D%/fuzz-http-request
%C%_fuzz_http_request_SOURCES = %D%/fuzz.h %D%/http-request.c
%C%_fuzz_http_request_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_http_request_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_http_request_LDADD = server/libvarved.la $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-identity
%C%_replay_identity_SOURCES = %D%/replay.c %D%/fuzz.h %D%/identity.c %D%/world.c %D%/world.h
%C%_replay_identity_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"identity"'
%C%_replay_identity_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_identity_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-identity
FUZZERS += %D%/fuzz-identity
EXTRA_PROGRAMS += %D%/fuzz-identity
%C%_fuzz_identity_SOURCES = %D%/fuzz.h %D%/identity.c %D%/world.c %D%/world.h
%C%_fuzz_identity_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_identity_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_identity_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-link
%C%_replay_link_SOURCES = %D%/replay.c %D%/fuzz.h %D%/link.c
%C%_replay_link_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"link"'
%C%_replay_link_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_link_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-link
FUZZERS += %D%/fuzz-link
EXTRA_PROGRAMS += %D%/fuzz-link
%C%_fuzz_link_SOURCES = %D%/fuzz.h %D%/link.c
%C%_fuzz_link_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_link_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_link_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-nbd
%C%_replay_nbd_SOURCES = %D%/replay.c %D%/fuzz.h \
	%D%/nbd.c %D%/nbd-check.c %D%/nbd-check.h \
	%D%/alloc.c %D%/alloc.h %D%/peer.c %D%/peer.h %D%/peer-tls.c %D%/peer-tls.h
%C%_replay_nbd_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"nbd"'
%C%_replay_nbd_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_nbd_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_WRAP)
%C%_replay_nbd_LDADD = server/libnbdserver.la $(FUZZ_CORE) $(LIBUV_LIBS) $(GNUTLS_LIBS)
TESTS += %D%/replay-nbd
THREAD_TESTS += %D%/replay-nbd
FUZZERS += %D%/fuzz-nbd
EXTRA_PROGRAMS += %D%/fuzz-nbd
%C%_fuzz_nbd_SOURCES = %D%/fuzz.h \
	%D%/nbd.c %D%/nbd-check.c %D%/nbd-check.h \
	%D%/alloc.c %D%/alloc.h %D%/peer.c %D%/peer.h %D%/peer-tls.c %D%/peer-tls.h
%C%_fuzz_nbd_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_nbd_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_WRAP) -fsanitize=fuzzer
%C%_fuzz_nbd_LDADD = server/libnbdserver.la $(FUZZ_CORE) $(LIBUV_LIBS) $(GNUTLS_LIBS)

check_PROGRAMS += %D%/replay-nbd-proto
%C%_replay_nbd_proto_SOURCES = %D%/replay.c %D%/fuzz.h %D%/nbd-proto.c
%C%_replay_nbd_proto_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"nbd-proto"'
%C%_replay_nbd_proto_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_nbd_proto_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-nbd-proto
FUZZERS += %D%/fuzz-nbd-proto
EXTRA_PROGRAMS += %D%/fuzz-nbd-proto
%C%_fuzz_nbd_proto_SOURCES = %D%/fuzz.h %D%/nbd-proto.c
%C%_fuzz_nbd_proto_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_nbd_proto_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_nbd_proto_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-qmp
%C%_replay_qmp_SOURCES = %D%/replay.c %D%/fuzz.h %D%/qmp.c
%C%_replay_qmp_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"qmp"'
%C%_replay_qmp_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_qmp_LDADD = $(FUZZ_CORE) $(JANSSON_LIBS)
TESTS += %D%/replay-qmp
FUZZERS += %D%/fuzz-qmp
EXTRA_PROGRAMS += %D%/fuzz-qmp
%C%_fuzz_qmp_SOURCES = %D%/fuzz.h %D%/qmp.c
%C%_fuzz_qmp_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_qmp_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_qmp_LDADD = $(FUZZ_CORE) $(JANSSON_LIBS)

check_PROGRAMS += %D%/replay-slot-file
%C%_replay_slot_file_SOURCES = %D%/replay.c %D%/fuzz.h %D%/slot-file.c %D%/world.c %D%/world.h
%C%_replay_slot_file_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"slot-file"'
%C%_replay_slot_file_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_slot_file_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-slot-file
FUZZERS += %D%/fuzz-slot-file
EXTRA_PROGRAMS += %D%/fuzz-slot-file
%C%_fuzz_slot_file_SOURCES = %D%/fuzz.h %D%/slot-file.c %D%/world.c %D%/world.h
%C%_fuzz_slot_file_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_slot_file_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_slot_file_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-text
%C%_replay_text_SOURCES = %D%/replay.c %D%/fuzz.h %D%/text.c
%C%_replay_text_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"text"'
%C%_replay_text_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_text_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-text
FUZZERS += %D%/fuzz-text
EXTRA_PROGRAMS += %D%/fuzz-text
%C%_fuzz_text_SOURCES = %D%/fuzz.h %D%/text.c
%C%_fuzz_text_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_text_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_text_LDADD = $(FUZZ_CORE)

check_PROGRAMS += %D%/replay-timeline
%C%_replay_timeline_SOURCES = %D%/replay.c %D%/fuzz.h %D%/timeline.c %D%/world.c %D%/world.h
%C%_replay_timeline_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"timeline"'
%C%_replay_timeline_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_timeline_LDADD = $(FUZZ_CORE)
TESTS += %D%/replay-timeline
FUZZERS += %D%/fuzz-timeline
EXTRA_PROGRAMS += %D%/fuzz-timeline
%C%_fuzz_timeline_SOURCES = %D%/fuzz.h %D%/timeline.c %D%/world.c %D%/world.h
%C%_fuzz_timeline_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_timeline_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_timeline_LDADD = $(FUZZ_CORE)
check_PROGRAMS += %D%/replay-tls
%C%_replay_tls_SOURCES = %D%/replay.c %D%/fuzz.h %D%/tls.c %D%/world.c %D%/world.h
%C%_replay_tls_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZ_TARGET='"tls"'
%C%_replay_tls_CFLAGS = $(FUZZ_CFLAGS)
%C%_replay_tls_LDADD = server/libnbdserver.la $(FUZZ_CORE) $(LIBUV_LIBS) $(GNUTLS_LIBS)
TESTS += %D%/replay-tls
FUZZERS += %D%/fuzz-tls
EXTRA_PROGRAMS += %D%/fuzz-tls
%C%_fuzz_tls_SOURCES = %D%/fuzz.h %D%/tls.c %D%/world.c %D%/world.h
%C%_fuzz_tls_CFLAGS = $(FUZZ_CFLAGS)
%C%_fuzz_tls_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
%C%_fuzz_tls_LDADD = server/libnbdserver.la $(FUZZ_CORE) $(LIBUV_LIBS) $(GNUTLS_LIBS)

CLEANFILES += $(FUZZERS)
EXTRA_DIST += %D%/nbd.dict %D%/run.sh
EXTRA_DIST += %D%/corpus
