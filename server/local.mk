noinst_LTLIBRARIES += server/libnbdserver.la
server_libnbdserver_la_SOURCES = \
	%D%/export.c \
	%D%/export.h \
	%D%/nbd-conn.c \
	%D%/nbd-conn.h \
	%D%/nbd-handshake.c \
	%D%/nbd-handshake.h \
	%D%/nbd-listener.c \
	%D%/nbd-listener.h \
	%D%/nbd-metactx.c \
	%D%/nbd-metactx.h \
	%D%/nbd-read.c \
	%D%/nbd-server.c \
	%D%/nbd-server.h \
	%D%/nbd-status.c \
	%D%/nbd-transmit.c \
	%D%/nbd-transmit.h
server_libnbdserver_la_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS)
server_libnbdserver_la_LIBADD = lib/libvarve.la $(LIBUV_LIBS)
