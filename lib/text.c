/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/text.h"

/* Bytes of the control character there; 0: there is none. */
static unsigned control_len(const char *text)
{
    unsigned char c = (unsigned char)text[0], next = c ? (unsigned char)text[1] : 0;

    if (c == 0xc2 && next >= 0x80 && next <= 0x9f)
        return 2;
    return (c && c < ' ') || c == 0x7f;
}

bool varve_text_is_harmless(const char *text)
{
    while (*text && control_len(text) == 0)
        text++;
    return *text == '\0';
}

void varve_text_harmless(char *text)
{
    char *to = text;

    while (*text) {
        unsigned len = control_len(text);

        *to++ = len > 0 ? '?' : *text;
        text += len > 0 ? len : 1;
    }
    *to = '\0';
}
