noinst_LTLIBRARIES += server/libnbdserver.la
server_libnbdserver_la_SOURCES = \
	%D%/nbd/access.c \
	%D%/nbd/access.h \
	%D%/nbd/client-id.c \
	%D%/nbd/client-id.h \
	%D%/nbd/export.c \
	%D%/nbd/export.h \
	%D%/nbd/nbd-clients.c \
	%D%/nbd/nbd-clients.h \
	%D%/nbd/nbd-conn.c \
	%D%/nbd/nbd-conn.h \
	%D%/nbd/nbd-handshake.c \
	%D%/nbd/nbd-handshake.h \
	%D%/nbd/nbd-host.c \
	%D%/nbd/nbd-host.h \
	%D%/nbd/nbd-job.c \
	%D%/nbd/acceptor.c \
	%D%/nbd/acceptor.h \
	%D%/nbd/nbd-listener.c \
	%D%/nbd/nbd-listener.h \
	%D%/nbd/nbd-metactx.c \
	%D%/nbd/nbd-metactx.h \
	%D%/nbd/nbd-pool.c \
	%D%/nbd/nbd-pool.h \
	%D%/nbd/nbd-read.c \
	%D%/nbd/nbd-request.c \
	%D%/nbd/nbd-server.c \
	%D%/nbd/nbd-server.h \
	%D%/nbd/nbd-socket.c \
	%D%/nbd/nbd-socket.h \
	%D%/nbd/nbd-status.c \
	%D%/nbd/nbd-throttle.c \
	%D%/nbd/nbd-tls.c \
	%D%/nbd/nbd-tls.h \
	%D%/nbd/nbd-transmit.c \
	%D%/nbd/nbd-transmit.h \
	%D%/nbd/small-file.c \
	%D%/nbd/small-file.h \
	%D%/nbd/throttle.c \
	%D%/nbd/throttle.h \
	%D%/nbd/tls-psk.c \
	%D%/nbd/tls-psk.h \
	%D%/nbd/tls-session.c \
	%D%/nbd/tls-session.h \
	%D%/nbd/tls.c \
	%D%/nbd/tls.h
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
	%D%/backup-exports.c \
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
	%D%/changed.c \
	%D%/changed.h \
	%D%/changes.c \
	%D%/changes.h \
	%D%/clerk.c \
	%D%/clerk.h \
	%D%/commands-backup.c \
	%D%/commands-bitmap.c \
	%D%/commands-changes.c \
	%D%/commands-checkpoint-file.c \
	%D%/commands-checkpoint.c \
	%D%/commands-checkpoints.c \
	%D%/commands-disk.c \
	%D%/commands-estimate.c \
	%D%/commands-export.c \
	%D%/commands-job.c \
	%D%/commands-move.c \
	%D%/commands-nbd.c \
	%D%/commands-query.c \
	%D%/commands.c \
	%D%/commands.h \
	%D%/control-conn.c \
	%D%/control-internal.h \
	%D%/control.c \
	%D%/control.h \
	%D%/daemon.c \
	%D%/daemon.h \
	%D%/diff-internal.h \
	%D%/diff-look.c \
	%D%/diff-piece.c \
	%D%/diff-run.c \
	%D%/diff.c \
	%D%/diff.h \
	%D%/dirt-rate.c \
	%D%/dirt-rate.h \
	%D%/disk-changes.c \
	%D%/disk-image.c \
	%D%/disk-move.c \
	%D%/disk-move.h \
	%D%/disk-older.c \
	%D%/disk-scratch.c \
	%D%/disk-trouble.c \
	%D%/disk.c \
	%D%/disk.h \
	%D%/disks.c \
	%D%/endpoint-extents.c \
	%D%/endpoint-extents.h \
	%D%/endpoint-file.c \
	%D%/endpoint-internal.h \
	%D%/endpoint-nbd.c \
	%D%/endpoint-pool.c \
	%D%/endpoint-pool.h \
	%D%/endpoint-view.c \
	%D%/endpoint.c \
	%D%/endpoint.h \
	%D%/events.c \
	%D%/events.h \
	%D%/freeze-keeper.c \
	%D%/freeze.c \
	%D%/freeze.h \
	%D%/guest-writes.c \
	%D%/guest-writes.h \
	%D%/http-conn.c \
	%D%/http-internal.h \
	%D%/http-request.c \
	%D%/http-request.h \
	%D%/http.c \
	%D%/http.h \
	%D%/job-internal.h \
	%D%/job-loop.c \
	%D%/job.c \
	%D%/job.h \
	%D%/journal.c \
	%D%/journal.h \
	%D%/log.c \
	%D%/log.h \
	%D%/mailbox.c \
	%D%/mailbox.h \
	%D%/map-cache.c \
	%D%/map-cache.h \
	%D%/metrics.c \
	%D%/metrics.h \
	%D%/options.c \
	%D%/options.h \
	%D%/pauses.c \
	%D%/pauses.h \
	%D%/peer.c \
	%D%/peer.h \
	%D%/push-run.c \
	%D%/push-target.c \
	%D%/push-target.h \
	%D%/push.c \
	%D%/push.h \
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
	%D%/view-export.h \
	%D%/web.c \
	%D%/web.h
nodist_server_libvarved_la_SOURCES = %D%/web-files.c
server_libvarved_la_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS) $(JANSSON_CFLAGS) $(LIBNBD_CFLAGS)
server_libvarved_la_LIBADD = server/libnbdserver.la lib/libvarve.la $(LIBUV_LIBS) $(JANSSON_LIBS) $(LIBNBD_LIBS)

# The page of --web.
web_files = %D%/web/page.html %D%/web/page.css %D%/web/page.js %D%/web/icon.svg
EXTRA_DIST += $(web_files) %D%/web/embed.sh
CLEANFILES += %D%/web-files.c
%D%/web-files.c: $(web_files) %D%/web/embed.sh
	$(AM_V_GEN)$(MKDIR_P) $(@D) && (cd $(srcdir) && %D%/web/embed.sh $(web_files)) >$@.tmp && mv $@.tmp $@

sbin_PROGRAMS += server/varved
server_varved_SOURCES = %D%/main.c
server_varved_CFLAGS = $(AM_CFLAGS) $(LIBUV_CFLAGS) $(GNUTLS_CFLAGS) $(JANSSON_CFLAGS)
server_varved_LDADD = server/libvarved.la
