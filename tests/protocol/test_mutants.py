#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The tests' own test: a server that breaks one rule is caught by the test of that rule.

fake.py is right: the tests named here pass against it.  With FAKE_BREAK=mutant it is wrong in one
way: the test named beside the mutant must fail.  A mutant that nobody catches is a hole in the tests."""
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

MUTANTS = {
    # mutant of fake.py: file, test that must turn red
    "handshake-flag-4": ("handshake", "no_other_handshake_flag_is_set"),
    "client-flags-unchecked": ("handshake", "unknown_client_flag_closes"),
    "always-pads": ("handshake", "export_name_with_no_zeroes_is_not_padded"),
    "never-pads": ("handshake", "export_name_pads_with_124_zeroes"),
    "go-pads": ("handshake", "go_is_never_padded"),
    "export-name-error-reply": ("handshake", "export_name_of_unknown_export_closes_without_a_word"),
    "name-up-to-nul": ("handshake", "export_name_of_unknown_export_closes_without_a_word"),
    "name-without-case": ("info", "unknown_export_is_err_unknown"),
    "wrong-option-in-reply": ("options", "unknown_option_is_unsup"),
    "tls-reqd-without-tls": ("options", "nothing_gets_tls_reqd_without_tls"),
    "starttls-acked": ("options", "starttls_without_tls_is_refused"),
    "error-text-not-utf8": ("options", "unknown_option_is_unsup"),
    "abort-not-acked": ("options", "abort_is_acknowledged"),
    "unknown-option-data-not-skipped": ("options", "data_of_an_unknown_option_is_skipped"),
    "long-option-believed": ("hostile", "option_of_length_2_32_is_no_reason_to_grow"),
    "list-with-data-acked": ("list", "list_with_data_is_invalid"),
    "unlisted-listed": ("list", "list_keeps_quiet_about_unlisted_exports"),
    "info-trailing-data": ("info", "malformed_info_is_invalid"),
    "info-export-short": ("info", "info_tells_the_export_and_acks"),
    "no-info-export": ("info", "info_tells_the_export_and_acks"),
    "info-twice": ("info", "info_tells_the_export_and_acks"),
    "info-and-go-differ": ("info", "info_and_go_with_the_same_parameters_agree"),
    "minimum-block-3": ("info", "block_size_is_told_when_asked"),
    "minimum-block-512": ("clients", "clients_rule_6_block_sizes_are_advertised"),
    "no-has-flags": ("info", "go_enters_transmission"),
    "df-flag-always": ("info", "df_flag_follows_structured_replies"),
    "trim-exposed": ("info", "read_only_is_told"),
    "meta-without-structured": ("metactx", "set_meta_context_before_structured_reply_is_invalid"),
    "query-beyond-data": ("metactx", "malformed_meta_option_is_invalid"),
    "failed-set-keeps-contexts": ("metactx", "failed_set_drops_what_was_set_before"),
    "contexts-of-any-export": ("metactx", "contexts_of_another_export_do_not_count"),
    "set-takes-wildcards": ("metactx", "set_with_wildcard_selects_nothing"),
    "set-adds": ("metactx", "set_replaces_what_was_set_before"),
    "list-selects": ("metactx", "list_does_not_select"),
    "equal-context-ids": ("metactx", "set_gives_each_context_its_own_id"),
    "unknown-namespace-invalid": ("metactx", "unknown_namespace_is_ignored"),
    "simple-read-in-structured-mode": ("read", "read_with_structured_replies_is_never_simple"),
    "simple-error-to-read": ("read", "read_with_structured_replies_is_never_simple"),
    "payload-after-simple-error": ("lost", "read_error_in_simple_mode_sends_no_payload"),
    "cookie-of-32-bits": ("read", "cookie_is_opaque"),
    "df-ignored": ("read", "df_across_data_and_hole_is_data"),
    "holes-travel": ("read", "zeroes_of_a_hole_do_not_travel"),
    "chunks-overlap": ("read", "read_gives_the_exports_bytes"),
    "chunk-beyond-request": ("read", "read_gives_the_exports_bytes"),
    "read-cut-short": ("read", "read_gives_the_exports_bytes"),
    "short-read-at-64k-border": ("read", "read_is_byte_exact_at_unaligned_offsets"),
    "chunk-after-done": ("read", "every_request_in_flight_is_answered_once"),
    "no-done": ("read", "last_byte_can_be_read"),
    "offset-overflow": ("read", "one_byte_beyond_the_end_is_einval"),
    "beyond-end-eio": ("read", "read_beyond_the_end_is_einval"),
    "flags-unchecked": ("read", "unknown_flags_of_read_are_einval"),
    "req-one-ignored": ("status", "req_one_is_exact"),
    "one-context-missing": ("status", "status_with_two_contexts_gives_two_chunks"),
    "wrong-context-id": ("status", "status_gives_one_chunk_per_context"),
    "status-done-on-first": ("status", "status_with_two_contexts_gives_two_chunks"),
    "chunk-after-status-error": ("status", "status_error_with_two_contexts_is_one_reply"),
    "extents-not-merged": ("status", "neighbouring_extents_differ"),
    "last-extent-beyond-request": ("status", "status_never_reaches_beyond_the_request"),
    "extents-unlimited": ("status", "reply_never_holds_more_than_2_20_extents"),
    "write-payload-not-drained": ("writes", "write_payload_is_never_taken_for_requests"),
    "write-eio": ("writes", "write_is_eperm_and_its_payload_is_drained"),
    "error-value-of-linux": ("writes", "trim_and_write_zeroes_are_eperm"),
    "error-without-message-length": ("errors", "error_comes_with_a_message_in_structured_mode"),
    "two-replies": ("writes", "flush_follows_its_flag"),
    "disc-is-answered": ("writes", "disc_closes_without_a_reply"),
    "disc-is-ignored": ("writes", "disc_closes_without_a_reply"),
    "unknown-command-closes": ("errors", "unknown_command_is_einval"),
    "request-magic-unchecked": ("errors", "request_without_its_magic_closes"),
    "withdrawn-clients-stay": ("errors", "withdrawn_export_disconnects_its_clients"),
    "contexts-end-apart": ("clients", "clients_rule_1_all_contexts_end_at_same_offset"),
    "no-base-allocation": ("clients", "clients_rule_4_base_allocation_is_always_offered"),
    "dirty-word-3": ("clients", "clients_rule_7_only_bit_0_in_the_dirty_word"),
    "repeats-count": ("clients", "clients_rule_8_repeated_queries_count_once"),
    "no-multi-conn": ("clients", "clients_rule_9_can_multi_conn_is_set"),
    "set-answers-extra": ("clients", "clients_rule_12_set_answers_with_the_context_asked_and_no_other"),
}

HERE = os.path.dirname(os.path.abspath(__file__))


def run(mutant, topic, tests, deadline):
    env = dict(os.environ, FAKE_BREAK=mutant, NBD_FIXTURE=os.path.join(HERE, "fake.py"),
               NBD_TEST_DEADLINE=deadline, PYTHONDONTWRITEBYTECODE="1")
    env.pop("NBD_TARGET", None)
    p = subprocess.run([sys.executable, os.path.join(HERE, "test_%s.py" % topic)] + tests, env=env,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.stdout.decode(errors="replace").splitlines()


def caught(item):
    mutant, (topic, test) = item
    # a short deadline: some mutants show by silence
    lines = run(mutant, topic, [test], "2")
    if any(x.startswith("not ok ") and " - %s #" % test in x for x in lines):
        return mutant, None
    return mutant, "%s/%s did not fail: %s" % (topic, test, " | ".join(lines)[:300])


def right(topic):
    tests = sorted({t for f, t in MUTANTS.values() if f == topic})
    bad = [x for x in run("", topic, tests, "60") if x.startswith("not ok ") or " # SKIP" in x]
    return topic, " | ".join(bad)[:500] or None


def main():
    words = sys.argv[1:]
    if os.environ.get("NBD_TARGET"):
        print("1..0 # SKIP a target is given: this is about the tests themselves")
        return 0
    n = failed = 0
    with open(os.path.join(HERE, "fake.py"), encoding="utf-8") as f:
        source = f.read()

    def say(name, why):
        nonlocal n, failed
        n += 1
        failed += why is not None
        print("%sok %d - %s%s" % ("not " if why else "", n, name, " # " + why.replace("#", "") if why else ""),
              flush=True)

    items = [i for i in MUTANTS.items() if not words or any(w in "mutant_is_caught_" + i[0] for w in words)]
    with ThreadPoolExecutor(2) as pool:
        if not words:
            for topic, why in pool.map(right, sorted({f for f, _ in MUTANTS.values()})):
                say("tests_pass_against_a_right_server_%s" % topic, why)
        for mutant, why in pool.map(caught, items):
            if 'broken("%s")' % mutant not in source:
                why = "fake.py knows no such mutant"
            say("mutant_is_caught_%s" % mutant.replace("-", "_"), why)
    print("1..%d" % n)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
