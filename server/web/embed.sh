#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# embed.sh FILE... : a C source with each file's bytes, as server/web.h declares them.
set -eu

echo '/* Made by server/web/embed.sh. */'
echo '#include "server/web.h"'
for file; do
    name=varve_web_$(basename "$file" | tr . _)
    echo "const unsigned char ${name}[] = {"
    od -An -v -tx1 "$file" | sed 's/ *\([0-9a-f][0-9a-f]\)/0x\1,/g'
    echo '};'
    echo "const size_t ${name}_len = sizeof(${name});"
done
