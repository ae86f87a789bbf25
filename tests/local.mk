
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
%C%_server_nbd_fixture_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS)
%C%_server_nbd_fixture_LDADD = server/libnbdserver.la $(LIBUV_LIBS)
