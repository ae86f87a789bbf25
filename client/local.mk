bin_PROGRAMS += %D%/varve
%C%_varve_SOURCES = \
	%D%/apply.c \
	%D%/backup.c \
	%D%/bitmap.c \
	%D%/checkpoint.c \
	%D%/cli.h \
	%D%/complete.c \
	%D%/control.c \
	%D%/control.h \
	%D%/copy.c \
	%D%/copy.h \
	%D%/deltas.c \
	%D%/deltas.h \
	%D%/diff.c \
	%D%/disk-move.c \
	%D%/disk.c \
	%D%/job.c \
	%D%/job.h \
	%D%/main.c \
	%D%/map-draw.c \
	%D%/map-draw.h \
	%D%/map-svg.c \
	%D%/map.c \
	%D%/metrics.c \
	%D%/nbd-open.c \
	%D%/nbd-status.c \
	%D%/nbd.h \
	%D%/out.c \
	%D%/out.h \
	%D%/progress.c \
	%D%/progress.h \
	%D%/pull-delta.c \
	%D%/pull.c \
	%D%/pull.h \
	%D%/push.c \
	%D%/qmp.c \
	%D%/screen.c \
	%D%/screen.h \
	%D%/sink-data.c \
	%D%/sink-marker.c \
	%D%/sink-tail.c \
	%D%/sink.c \
	%D%/sink.h \
	%D%/status.c \
	%D%/top-draw.c \
	%D%/top.c \
	%D%/top.h \
	%D%/trouble.c \
	%D%/trouble.h \
	%D%/uri.c \
	%D%/uri.h \
	%D%/watch.c \
	%D%/zeroes.c \
	%D%/zeroes.h
%C%_varve_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(LIBNBD_CFLAGS)
%C%_varve_LDADD = lib/libvarve.la $(JANSSON_LIBS) $(LIBNBD_LIBS)

# Where the shells look: below our own prefix, whatever theirs is.
bashcompdir = $(datadir)/bash-completion/completions
zshcompdir = $(datadir)/zsh/site-functions
dist_bashcomp_DATA = %D%/completion/varve %D%/completion/varved
dist_zshcomp_DATA = %D%/completion/_varve %D%/completion/_varved
