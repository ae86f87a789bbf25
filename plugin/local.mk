nbdkitplugin_LTLIBRARIES += plugin/nbdkit-varve-plugin.la
plugin_nbdkit_varve_plugin_la_SOURCES = \
	%D%/flusher.c \
	%D%/flusher.h \
	%D%/params.c \
	%D%/params.h \
	%D%/image.c \
	%D%/image.h \
	%D%/link.c \
	%D%/link.h \
	%D%/nbdkit.h \
	%D%/plugin.c
plugin_nbdkit_varve_plugin_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)
plugin_nbdkit_varve_plugin_la_LDFLAGS = $(AM_LDFLAGS) \
	-module -avoid-version -shared -export-symbols-regex '^plugin_init$$'
plugin_nbdkit_varve_plugin_la_LIBADD = lib/libvarve.la
