noinst_LTLIBRARIES += lib/libvarve.la
lib_libvarve_la_SOURCES = \
	%D%/bitmap.c \
	%D%/bitmap.h \
	%D%/block.c \
	%D%/block.h \
	%D%/err.c \
	%D%/err.h \
	%D%/qmp.c \
	%D%/qmp.h \
	%D%/world-posix.c \
	%D%/world.h
lib_libvarve_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(GNUTLS_CFLAGS)
lib_libvarve_la_LIBADD = $(JANSSON_LIBS) $(GNUTLS_LIBS)
