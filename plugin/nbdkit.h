/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit's plugin API in the version we use.  Every file of plugin/ that needs it includes this page
 * and nothing else may include <nbdkit-plugin.h>.
 */
#ifndef VARVE_PLUGIN_NBDKIT_H
#define VARVE_PLUGIN_NBDKIT_H

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* What NBDKIT_REGISTER_PLUGIN defines and the header does not declare. */
struct nbdkit_plugin *plugin_init(void);

#endif
