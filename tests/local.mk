
check_PROGRAMS += %D%/unit/test-qmp
%C%_unit_test_qmp_SOURCES = %D%/unit/test-qmp.c
%C%_unit_test_qmp_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(CMOCKA_CFLAGS)
%C%_unit_test_qmp_LDADD = lib/libvarve.la $(JANSSON_LIBS) $(CMOCKA_LIBS)
TESTS += %D%/unit/test-qmp
