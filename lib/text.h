/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Text of others, before people see it.  Pure, any thread.
 */
#ifndef VARVE_LIB_TEXT_H
#define VARVE_LIB_TEXT_H

#include <stdbool.h>

/* No control character in it, those of UTF-8 from U+0080 to U+009F included: it drives no terminal,
 * and begins no line. */
bool varve_text_is_harmless(const char *text);

/* In place: each of them becomes a question mark. */
void varve_text_harmless(char *text);

#endif
