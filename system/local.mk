# What systemd wants.  Everything goes below our own prefix: systemd looks in /usr and /usr/local.
systemunitdir = $(prefix)/lib/systemd/system
systemusersdir = $(prefix)/lib/sysusers.d
systemtmpfilesdir = $(prefix)/lib/tmpfiles.d
needrestartdir = $(sysconfdir)/needrestart/conf.d

made_units = %D%/varved.service %D%/varve@.service
dist_systemunit_DATA = %D%/varved.socket %D%/varve@.socket %D%/varve-metrics.socket %D%/varve-web.socket
dist_pkgdata_DATA = %D%/alerts.yml %D%/grafana.json
nodist_systemunit_DATA = $(made_units)
EXTRA_DIST += %D%/varved.service.in %D%/varve@.service.in %D%/needrestart.conf %D%/sysusers.conf %D%/tmpfiles.conf
CLEANFILES += $(made_units)

substitute = $(AM_V_GEN)$(MKDIR_P) $(@D) && sed \
	-e 's|@bindir[@]|$(bindir)|g' -e 's|@sbindir[@]|$(sbindir)|g' -e 's|@sysconfdir[@]|$(sysconfdir)|g' -e 's|@NBDKIT[@]|$(NBDKIT)|g'
%D%/varved.service: %D%/varved.service.in
	$(substitute) $(srcdir)/%D%/varved.service.in >$@
%D%/varve@.service: %D%/varve@.service.in
	$(substitute) $(srcdir)/%D%/varve@.service.in >$@

install-data-local:
	$(MKDIR_P) '$(DESTDIR)$(systemusersdir)' '$(DESTDIR)$(systemtmpfilesdir)'
	$(INSTALL_DATA) $(srcdir)/%D%/sysusers.conf '$(DESTDIR)$(systemusersdir)/varve.conf'
	$(INSTALL_DATA) $(srcdir)/%D%/tmpfiles.conf '$(DESTDIR)$(systemtmpfilesdir)/varve.conf'
	$(MKDIR_P) '$(DESTDIR)$(needrestartdir)' '$(DESTDIR)$(sysconfdir)/varve/disks'
	$(INSTALL_DATA) $(srcdir)/%D%/needrestart.conf '$(DESTDIR)$(needrestartdir)/varve.conf'
uninstall-local:
	rm -f '$(DESTDIR)$(systemusersdir)/varve.conf' '$(DESTDIR)$(systemtmpfilesdir)/varve.conf' \
		'$(DESTDIR)$(needrestartdir)/varve.conf'

# For those who write plugins' neighbours and clients of the control socket.
pkgconfigdir = $(libdir)/pkgconfig
nodist_pkgconfig_DATA = %D%/varve.pc
EXTRA_DIST += %D%/varve.pc.in
CLEANFILES += %D%/varve.pc
%D%/varve.pc: %D%/varve.pc.in
	$(substitute) -e 's|@prefix[@]|$(prefix)|g' -e 's|@includedir[@]|$(includedir)|g' \
		-e 's|@VERSION[@]|$(VERSION)|g' -e 's|@plugindir[@]|$(nbdkitplugindir)|g' \
		$(srcdir)/%D%/varve.pc.in >$@

EXTRA_DIST += \
	debian/changelog \
	debian/clean \
	debian/control \
	debian/copyright \
	debian/nbdkit-plugin-varve.install \
	debian/not-installed \
	debian/rules \
	debian/source/format \
	debian/varve-dev.install \
	debian/varve-doc.doc-base \
	debian/varve-doc.install \
	debian/varve.install \
	debian/varve.prerm
# A tarball has the made one, for rpmbuild -ta.
EXTRA_DIST += %D%/varve.spec
