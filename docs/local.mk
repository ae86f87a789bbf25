# Manual pages and HTML from POD; a tarball has none made, and a build without pod2man installs none.
pages = \
	%D%/nbdkit-varve-plugin.1 \
	%D%/varve.1 \
	%D%/varve-qmp.7 \
	%D%/varve-protocol.7 \
	%D%/varve-recipes.7 \
	%D%/varve-security.7 \
	%D%/varved.8
EXTRA_DIST += %D%/to-html.pl $(addsuffix .pod,$(basename $(pages)))
dist_doc_DATA = README.md NEWS.md %D%/architecture.md %D%/clients.md %D%/nbd-conformance.md %D%/proofs.md %D%/recipes.md %D%/varve.svg
if HAVE_POD2MAN
html_pages = $(addsuffix .html,$(basename $(pages)))
nodist_man_MANS = $(pages)
nodist_html_DATA = $(html_pages)
CLEANFILES += $(pages) $(html_pages)
endif

pod_to_man = $(AM_V_GEN)$(MKDIR_P) $(@D) && $(POD2MAN) --utf8 --center=varve \
	--release='$(PACKAGE_STRING)' --section=$(subst .,,$(suffix $@)) --name=$(notdir $(basename $@)) $< $@
%D%/%.1: %D%/%.pod
	$(pod_to_man)
%D%/%.7: %D%/%.pod
	$(pod_to_man)
%D%/%.8: %D%/%.pod
	$(pod_to_man)

# L<varved(8)/X> becomes a link to the page beside it.
%D%/%.html: %D%/%.pod
	$(AM_V_GEN)$(MKDIR_P) $(@D) && perl $(srcdir)/%D%/to-html.pl $< $@
