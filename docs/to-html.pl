# SPDX-License-Identifier: BSD-3-Clause
#
# A manual page from POD as HTML, with links to the pages beside it:  perl to-html.pl PAGE.pod PAGE.html
use strict;
use warnings;

package Page;
use parent 'Pod::Simple::HTML';

sub resolve_man_page_link {
    my ($self, $to, $section) = @_;
    return unless "$to" =~ /^((?:nbdkit-)?varve[a-z-]*)\([1-8]\)$/;
    return "$1.html" . (defined $section ? '#' . $self->section_escape("$section") : '');
}

# The day of the build is nothing that a page should tell.
sub version_tag_comment {
    return '';
}

package main;
my ($from, $to) = @ARGV;
my $page = Page->new;
open my $out, '>', $to or die "$to: $!\n";
$page->html_header_before_title('<!DOCTYPE html><html><head><meta charset="UTF-8"><title>');
$page->html_header_after_title("</title></head>\n<body class='pod'>\n");
$page->index(1);
$page->title_prefix('varve: ');
$page->output_fh($out);
$page->parse_file($from);
close $out or die "$to: $!\n";
die "$from: it has errors, see the end of $to\n" if $page->any_errata_seen;
