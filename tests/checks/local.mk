# Judges of the tree itself.
TESTS += \
	%D%/test_conformance.py \
	%D%/test_file_length.py \
	%D%/test_help_in_pod.py \
	%D%/test_include_edges.py \
	%D%/test_packages.py \
	%D%/test_proofs.py \
	%D%/test_qmp_manual.py \
	%D%/test_tests_are_run.py
EXTRA_DIST += \
	%D%/test_conformance.py \
	%D%/test_file_length.py \
	%D%/test_help_in_pod.py \
	%D%/test_include_edges.py \
	%D%/test_packages.py \
	%D%/test_proofs.py \
	%D%/test_qmp_manual.py \
	%D%/test_tests_are_run.py \
	%D%/tree.py
