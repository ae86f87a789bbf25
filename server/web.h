/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The site of --web: a page that shows disks, checkpoints, backups and jobs, and what it asks for
 * under /api/: what query-* commands return.  Nothing can be changed there.
 */
#ifndef VARVE_SERVER_WEB_H
#define VARVE_SERVER_WEB_H

#include "server/http.h"

extern const struct varve_http_site varve_web_site;

/* The files of server/web, as web-files.c has them. */
extern const unsigned char varve_web_page_html[], varve_web_page_css[], varve_web_page_js[],
    varve_web_icon_svg[];
extern const size_t varve_web_page_html_len, varve_web_page_css_len, varve_web_page_js_len,
    varve_web_icon_svg_len;

#endif
