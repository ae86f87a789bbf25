noinst_LTLIBRARIES += lib/libvarve.la
lib_libvarve_la_SOURCES = \
	%D%/bitmap.c \
	%D%/bitmap.h \
	%D%/block.c \
	%D%/block.h \
	%D%/catalogue-json.c \
	%D%/catalogue.c \
	%D%/catalogue.h \
	%D%/control.c \
	%D%/control.h \
	%D%/digest.c \
	%D%/digest.h \
	%D%/disk-lock.c \
	%D%/disk-lock.h \
	%D%/epoch-file-internal.h \
	%D%/epoch-file-write.c \
	%D%/epoch-file.c \
	%D%/epoch-file.h \
	%D%/err.c \
	%D%/err.h \
	%D%/gate.c \
	%D%/gate.h \
	%D%/identity.c \
	%D%/identity.h \
	%D%/link-proto.c \
	%D%/link-proto.h \
	%D%/nbd-proto.c \
	%D%/nbd-proto.h \
	%D%/parse.c \
	%D%/parse.h \
	%D%/paths.c \
	%D%/paths.h \
	%D%/qmp.c \
	%D%/qmp.h \
	%D%/slot-file.c \
	%D%/slot-file.h \
	%D%/source.c \
	%D%/timeline.c \
	%D%/timeline.h \
	%D%/tracker-adopt.c \
	%D%/tracker-attach.c \
	%D%/tracker-boundary.c \
	%D%/tracker-epochs.c \
	%D%/tracker-internal.h \
	%D%/tracker-preserve.c \
	%D%/tracker-rebuild.c \
	%D%/tracker.c \
	%D%/tracker.h \
	%D%/view-internal.h \
	%D%/view.c \
	%D%/view.h \
	%D%/whole-file.c \
	%D%/whole-file.h \
	%D%/world-posix.c \
	%D%/world.h
lib_libvarve_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(GNUTLS_CFLAGS)
lib_libvarve_la_LIBADD = $(JANSSON_LIBS) $(GNUTLS_LIBS)
