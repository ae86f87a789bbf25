/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Control characters of others become question marks, and nothing else changes.
 */
#include "lib/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void control_characters_alone_are_replaced(void **state)
{
    static const struct {
        const char *text, *harmless;
    } cases[] = {
        {"", ""},
        {"vda 1", "vda 1"},
        {"a\x1b[31m\r\nb\tc\x7f", "a?[31m??b?c?"},
        {"\xc2\x9b"
         "31m",
         "?31m"}, /* CSI as one character */
        {"\xc2\x80\xc2\x9f", "??"},
        {"\xc2\xa0\xc4\x9b\xe2\x96\x88\xf0\x9f\x98\x80",
         "\xc2\xa0\xc4\x9b\xe2\x96\x88\xf0\x9f\x98\x80"},
        {"\x9b\xc2", "\x9b\xc2"}, /* no UTF-8: of whatever character set it is */
        {"\xc2", "\xc2"},
        {"\xc2\x1b", "\xc2?"},
    };
    char buf[64];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        strcpy(buf, cases[i].text);
        varve_text_harmless(buf);
        assert_string_equal(buf, cases[i].harmless);
        assert_true(varve_text_is_harmless(buf));
        assert_int_equal(varve_text_is_harmless(cases[i].text),
                         strcmp(cases[i].text, cases[i].harmless) == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(control_characters_alone_are_replaced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
