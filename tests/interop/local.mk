# Real clients against real exports.  What make check runs of it is for the clients of this machine;
# tests/interop/run does more, and takes another Debian's clients.
interop_tests = \
	%D%/test_chromium.py \
	%D%/test_fio.py \
	%D%/test_fragments.py \
	%D%/test_guest.py \
	%D%/test_imageio.py \
	%D%/test_libnbd.py \
	%D%/test_libvirt.py \
	%D%/test_nbd_client.py \
	%D%/test_qemu.py \
	%D%/test_virtnbdbackup.py \
	%D%/test_wire.py
TESTS += $(interop_tests)
EXTRA_DIST += \
	$(interop_tests) \
	%D%/clients.py \
	%D%/guest-init.sh \
	%D%/guest.py \
	%D%/history.py \
	%D%/imageio_copy.py \
	%D%/imageio_jobs.py \
	%D%/make-root \
	%D%/overheard.py \
	%D%/qemu_map.py \
	%D%/reach.py \
	%D%/run \
	%D%/vnb.py \
	%D%/vnb_jobs.py

# All of it, and a guest with a kernel from Debian; INTEROP: more of run's arguments.
interop: all
	$(PYTHON) $(srcdir)/%D%/run --build . --fetch $(INTEROP)
.PHONY: interop
