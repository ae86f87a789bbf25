# Manual pages from POD; a tarball has none made, and a build without pod2man installs none.
PODS = \
	%D%/nbdkit-varve-plugin.pod \
	%D%/varve.pod \
	%D%/varved.pod
EXTRA_DIST += $(PODS) %D%/architecture.md %D%/clients.md %D%/nbd-conformance.md %D%/proofs.md %D%/recipes.md
if HAVE_POD2MAN
nodist_man_MANS = %D%/nbdkit-varve-plugin.1 %D%/varve.1 %D%/varved.8
CLEANFILES += $(nodist_man_MANS)
endif

pod_to_man = $(AM_V_GEN)$(MKDIR_P) $(@D) && \
	$(POD2MAN) --utf8 --center=varve --release='$(PACKAGE_STRING)'
%D%/nbdkit-varve-plugin.1: %D%/nbdkit-varve-plugin.pod
	$(pod_to_man) --section=1 --name=nbdkit-varve-plugin $(srcdir)/%D%/nbdkit-varve-plugin.pod $@
%D%/varve.1: %D%/varve.pod
	$(pod_to_man) --section=1 --name=varve $(srcdir)/%D%/varve.pod $@
%D%/varved.8: %D%/varved.pod
	$(pod_to_man) --section=8 --name=varved $(srcdir)/%D%/varved.pod $@
