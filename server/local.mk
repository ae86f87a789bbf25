noinst_LTLIBRARIES += server/libnbdserver.la
server_libnbdserver_la_SOURCES = \
	%D%/access.c \
	%D%/access.h \
	%D%/client-id.c \
	%D%/client-id.h \
	%D%/export.c \
	%D%/export.h \
	%D%/nbd-clients.c \
	%D%/nbd-clients.h \
	%D%/nbd-conn.c \
	%D%/nbd-conn.h \
	%D%/nbd-handshake.c \
	%D%/nbd-handshake.h \
	%D%/nbd-host.c \
	%D%/nbd-host.h \
	%D%/nbd-job.c \
	%D%/nbd-listener.c \
	%D%/nbd-listener.h \
	%D%/nbd-metactx.c \
	%D%/nbd-metactx.h \
	%D%/nbd-pool.c \
	%D%/nbd-pool.h \
	%D%/nbd-read.c \
	%D%/nbd-request.c \
	%D%/nbd-server.c \
	%D%/nbd-server.h \
	%D%/nbd-socket.c \
	%D%/nbd-socket.h \
	%D%/nbd-status.c \
	%D%/nbd-throttle.c \
	%D%/nbd-tls.c \
	%D%/nbd-tls.h \
	%D%/nbd-transmit.c \
	%D%/nbd-transmit.h \
	%D%/small-file.c \
	%D%/small-file.h \
	%D%/throttle.c \
	%D%/throttle.h \
	%D%/tls-psk.c \
	%D%/tls-psk.h \
	%D%/tls-session.c \
	%D%/tls-session.h \
	%D%/tls.c \
	%D%/tls.h
server_libnbdserver_la_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS)
server_libnbdserver_la_LIBADD = lib/libvarve.la $(LIBUV_LIBS) $(GNUTLS_LIBS)

# The daemon but for its main(), for tests that run it within themselves.
noinst_LTLIBRARIES += server/libvarved.la
server_libvarved_la_SOURCES = \
	%D%/allocation.c \
	%D%/allocation.h \
	%D%/args.c \
	%D%/args.h \
	%D%/backup-begin.c \
	%D%/backup-end.c \
	%D%/backup-restore.c \
	%D%/failed-reads.c \
	%D%/failed-reads.h \
	%D%/backup.c \
	%D%/backup.h \
	%D%/base.c \
	%D%/base.h \
	%D%/bitmap-actions.c \
	%D%/bitmap.c \
	%D%/bitmap.h \
	%D%/boundary.c \
	%D%/boundary.h \
	%D%/changes.c \
	%D%/changes.h \
	%D%/clerk.c \
	%D%/clerk.h \
	%D%/commands-backup.c \
	%D%/commands-bitmap.c \
	%D%/commands-checkpoint.c \
	%D%/commands-checkpoints.c \
	%D%/commands-estimate.c \
	%D%/commands-query.c \
	%D%/commands.c \
	%D%/commands.h \
	%D%/control-conn.c \
	%D%/control-internal.h \
	%D%/control.c \
	%D%/control.h \
	%D%/daemon.c \
	%D%/daemon.h \
	%D%/dirt-rate.c \
	%D%/dirt-rate.h \
	%D%/disk-changes.c \
	%D%/disk-scratch.c \
	%D%/disk.c \
	%D%/disk.h \
	%D%/disks.c \
	%D%/events.c \
	%D%/events.h \
	%D%/freeze-keeper.c \
	%D%/freeze.c \
	%D%/freeze.h \
	%D%/guest-writes.c \
	%D%/guest-writes.h \
	%D%/log.c \
	%D%/log.h \
	%D%/mailbox.c \
	%D%/mailbox.h \
	%D%/map-cache.c \
	%D%/map-cache.h \
	%D%/options.c \
	%D%/options.h \
	%D%/peer.c \
	%D%/peer.h \
	%D%/release.c \
	%D%/release.h \
	%D%/runtime.c \
	%D%/runtime.h \
	%D%/sd-listen.c \
	%D%/sd-listen.h \
	%D%/sd-notify.c \
	%D%/sd-notify.h \
	%D%/served-view.c \
	%D%/served-view.h \
	%D%/transaction.c \
	%D%/transaction.h \
	%D%/view-export.c \
	%D%/view-export.h
server_libvarved_la_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS) $(JANSSON_CFLAGS)
server_libvarved_la_LIBADD = server/libnbdserver.la lib/libvarve.la $(LIBUV_LIBS) $(JANSSON_LIBS)

sbin_PROGRAMS += server/varved
server_varved_SOURCES = %D%/main.c
server_varved_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS) $(JANSSON_CFLAGS)
server_varved_LDADD = server/libvarved.la
