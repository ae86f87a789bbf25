// SPDX-License-Identifier: BSD-3-Clause
//
// Draws what varved tells under /api/.  Names and texts are anybody's: they become text nodes and
// attributes, never markup.
'use strict';

const EVERY_MS = 5000;
const MAP_EVERY_MS = 30000; // varved reads a map for each disk
const CELLS_ACROSS = 64;
const ENDED_SHOWN = 12;
const SKIPPED_MOST = 6; // rounds that somebody may take to choose from a list
const SVG = 'http://www.w3.org/2000/svg';

const COLOURS = {
	live: 'good', running: 'good', completed: 'good', concluded: 'good',
	offline: 'warn', degraded: 'warn', created: 'warn', pending: 'warn', aborting: 'warn',
};

// What was chosen for the map of each disk, by its name: the list's value.
const chosen = new Map();
// Pictures of disks, by their names: {figure, query, drawn}.
const pictures = new Map();
let skipped = 0;

// --- elements

// An element with attributes and children; a child that is no element is text.
function element(name, attributes, ...children) {
	const e = document.createElement(name);
	for (const [key, value] of Object.entries(attributes))
		e.setAttribute(key, value);
	e.append(...children.filter((c) => c !== null));
	return e;
}

function drawn(name, attributes, title) {
	const e = document.createElementNS(SVG, name);
	for (const [key, value] of Object.entries(attributes))
		e.setAttribute(key, value);
	if (title !== undefined) {
		const t = document.createElementNS(SVG, 'title');
		t.textContent = title;
		e.append(t);
	}
	return e;
}

function state(word) {
	return element('span', {class: 'state ' + (COLOURS[word] || 'bad')}, word);
}

function facts(...pairs) {
	const list = element('dl', {});
	for (const [what, value] of pairs) {
		if (value !== null && value !== '')
			list.append(element('dt', {}, what), element('dd', {}, value));
	}
	return list;
}

function bar(done, all, label) {
	const percent = all > 0 ? Math.min(100, 100 * done / all) : 0;
	const inner = element('div', {});
	inner.style.width = percent + '%';
	return element('div', {
		class: 'bar', role: 'progressbar', 'aria-label': label, 'aria-valuemin': 0, 'aria-valuemax': 100,
		'aria-valuenow': Math.round(percent),
	}, inner);
}

function empty(text) {
	return element('p', {class: 'empty'}, text);
}

// --- words

function size(bytes) {
	const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];
	let unit = 0;
	while (bytes >= 1024 && unit < units.length - 1) {
		bytes /= 1024;
		unit++;
	}
	return (unit > 0 && bytes < 10 ? bytes.toFixed(1) : Math.floor(bytes)) + ' ' + units[unit];
}

function moment(seconds) {
	return new Date(seconds * 1000).toLocaleString(undefined, {dateStyle: 'medium', timeStyle: 'short'});
}

function span(seconds) {
	for (const [unit, length] of [['d', 86400], ['h', 3600], ['min', 60]]) {
		if (seconds >= length)
			return Math.floor(seconds / length) + ' ' + unit;
	}
	return Math.max(0, Math.floor(seconds)) + ' s';
}

function isOpen(backup) {
	return ['running', 'degraded', 'broken'].includes(backup.state);
}

// --- disks

// From the oldest to now, by varved's clock where that is ahead of ours.
function timeline(points, spans, now) {
	const times = [...points, ...spans].map((o) => o.time);
	const first = Math.min(...times, now - 1), last = Math.max(...times, now);
	const x = (time) => (1 + 98 * (time - first) / (last - first)) + '%';
	const svg = drawn('svg', {class: 'timeline', role: 'img',
		'aria-label': points.length + ' checkpoints and ' + spans.length + ' running backups since ' +
			moment(first)});
	svg.append(drawn('line', {class: 'axis', x1: '1%', x2: '99%', y1: '50%', y2: '50%'}));
	for (const s of spans)
		svg.append(drawn('line', {class: 'span', x1: x(s.time), x2: '99%', y1: '50%', y2: '50%'}, s.title));
	for (const p of points)
		svg.append(drawn('circle', {class: 'point' + p.kind, cx: x(p.time), cy: '50%', r: 6}, p.title));
	return element('figure', {}, svg, element('div', {class: 'ends faint'},
		element('span', {}, moment(first)), element('span', {}, 'now')));
}

function map(changes) {
	const cells = changes.cells, down = Math.max(1, Math.ceil(cells.length / CELLS_ACROSS));
	const svg = drawn('svg', {class: 'map', role: 'img', viewBox: '0 0 ' + CELLS_ACROSS + ' ' + down,
		'aria-label': 'Map of ' + changes.disk + ': ' + size(changes['dirty-bytes']) + ' dirty'});
	cells.forEach((bytes, i) => {
		if (bytes === 0)
			return;
		const from = i * changes['cell-bytes'], len = Math.min(changes['cell-bytes'], changes.size - from);
		svg.append(drawn('rect', {x: i % CELLS_ACROSS, y: Math.floor(i / CELLS_ACROSS), width: 1, height: 1,
			'fill-opacity': (0.25 + 0.75 * bytes / len).toFixed(2)},
		size(bytes) + ' of ' + size(len) + ' at ' + size(from)));
	});
	return svg;
}

// The list of what the map can be since, its values being queries.
function choice(disk, checkpoints, bitmaps) {
	const select = element('select', {});
	const add = (value, text) => select.append(element('option', {value: value}, text));
	add('', 'the last boundary');
	for (const c of checkpoints) {
		if (c.usable)
			add('&since=' + encodeURIComponent(c.name), 'checkpoint ' + c.name);
	}
	for (const b of bitmaps) {
		if (!b.inconsistent && !b.busy)
			add('&bitmap=' + encodeURIComponent(b.name), 'bitmap ' + b.name);
	}
	select.value = chosen.get(disk.name) || '';
	if (select.selectedIndex < 0)
		select.value = '';
	return select;
}

function pictureOf(name) {
	if (!pictures.has(name))
		pictures.set(name, {figure: element('figure', {}), query: null, drawn: 0});
	return pictures.get(name);
}

async function drawMap(name, query) {
	const p = pictureOf(name);
	let picture, words;

	if (p.query === query && Date.now() - p.drawn < MAP_EVERY_MS)
		return;
	p.query = query;
	p.drawn = Date.now();
	try {
		const changes = await ask('changes?disk=' + encodeURIComponent(name) + query);
		picture = map(changes);
		words = size(changes['dirty-bytes']) + ' of ' + size(changes.size) + ' dirty';
	} catch (e) {
		picture = null;
		words = e.message;
	}
	if (p.query === query) // and nobody has chosen another one meanwhile
		p.figure.replaceChildren(...(picture ? [picture] : []), element('figcaption', {}, words));
}

function newestGood(disk, backups) {
	const times = backups.filter((b) => b.state === 'completed' && b.disks.some((d) => d.disk === disk.name))
		.map((b) => b.time);
	return times.length > 0 ? Math.max(...times) : null;
}

// The disk's checkpoints; those whose backup runs are coming, others that cannot be used are useless.
function checkpointsOf(disk, all) {
	const found = [];
	for (const c of all.checkpoints) {
		const coming = all.backups.some((b) => isOpen(b) && b.checkpoint === c.name);
		for (const d of c.disks.filter((o) => o.disk === disk.name)) {
			found.push({
				name: c.name, time: c.time, usable: d.usable,
				kind: d.usable ? '' : coming ? ' coming' : ' useless',
				title: c.name + ', ' + moment(c.time) + ': ' + (d.usable ?
					size(d['dirty-bytes']) + ' changed since' : d.reason || 'cannot be used'),
			});
		}
	}
	return found;
}

function diskCard(disk, all, now) {
	const good = newestGood(disk, all.backups);
	const checkpoints = checkpointsOf(disk, all);
	const running = all.backups.filter((b) => isOpen(b) && b.disks.some((d) => d.disk === disk.name))
		.map((b) => ({time: b.time, title: 'backup ' + b.id + ' since ' + moment(b.time)}));
	const scratch = disk.scratch || {used: 0, max: null};
	const card = element('article', {class: 'card'},
		element('div', {class: 'head'}, element('h3', {}, disk.name), state(disk.state)),
		disk.reason ? element('p', {class: 'reason ' + (disk.degraded ? 'warn' : 'bad')}, disk.reason) : null);
	if (disk.size === undefined)
		return card;
	card.append(facts(
		['image', disk.image], ['size', size(disk.size)],
		['newest good backup', good === null ? 'none that varved remembers' : span(now - good) + ' ago'],
		['dirty', size(disk['dirty-bytes']) + ' since the last boundary'],
		['bitmaps', disk.bitmaps.join(', ')],
		['preimages', size(scratch.used) + (scratch.max ? ' of ' + size(scratch.max) : '')]));
	if (scratch.max)
		card.append(bar(scratch.used, scratch.max, 'Preimages of ' + disk.name));
	if (checkpoints.length + running.length > 0)
		card.append(timeline(checkpoints, running, now));
	if (disk.state === 'live' || disk.state === 'offline') {
		const select = choice(disk, checkpoints, all.bitmaps.get(disk.name) || []);
		select.addEventListener('change', () => {
			chosen.set(disk.name, select.value);
			select.blur();
			drawMap(disk.name, select.value);
		});
		card.append(element('figure', {}, element('label', {}, 'Changed since', select)),
			pictureOf(disk.name).figure);
		all.maps.push(() => drawMap(disk.name, select.value));
	}
	return card;
}

// --- backups, jobs, clients

function backupRow(backup, now) {
	const row = element('article', {class: 'row'},
		element('div', {class: 'head'}, element('span', {class: 'name'}, backup.id), state(backup.state)),
		element('p', {class: 'faint'}, moment(backup.time) + (backup.ended === undefined ? ', for ' +
			span(now - backup.time) : ', took ' + span(backup.ended - backup.time)) +
			(backup.checkpoint ? ', checkpoint ' + backup.checkpoint : '')),
		backup.reason ? element('p', {class: 'reason bad'}, backup.reason) : null);
	for (const d of backup.disks) {
		const base = d.since || d.bitmap;
		const words = d.disk + ', ' + (base === undefined ? 'full' : 'since ' + base) + ': ' +
			size(d['bytes-read']) + ' read, ' + size(d['dirty-bytes']) + ' dirty' +
			(isOpen(backup) ? ', ' + d.clients + (d.clients === 1 ? ' client' : ' clients') : '');
		if (isOpen(backup))
			row.append(bar(d['bytes-read'], d['dirty-bytes'], 'Backup of ' + d.disk));
		row.append(element('p', {class: 'faint'}, words));
	}
	return row;
}

function showBackups(backups, now) {
	const open = backups.filter(isOpen);
	const ended = backups.filter((b) => !isOpen(b)).sort((a, b) => b.time - a.time).slice(0, ENDED_SHOWN);
	const place = document.getElementById('backups');
	const unfolded = place.querySelector('details[open]') !== null;
	place.replaceChildren(...open.map((b) => backupRow(b, now)));
	if (open.length === 0)
		place.append(empty('No backup is running.'));
	if (ended.length > 0) {
		const details = element('details', {}, element('summary', {class: 'faint'}, 'The newest that ended (' +
			ended.length + ')'), element('div', {class: 'rows'}, ...ended.map((b) => backupRow(b, now))));
		details.open = unfolded;
		place.append(details);
	}
}

function jobRow(job) {
	return element('article', {class: 'row'},
		element('div', {class: 'head'}, element('span', {class: 'name'}, job.id), state(
			job.error ? 'failed' : job.status)),
		job.error ? element('p', {class: 'reason bad'}, job.error) : null,
		bar(job['current-progress'], job['total-progress'], 'Job ' + job.id),
		element('p', {class: 'faint'}, job.type + ' of ' + job.disk + (job.bitmap ? ' into ' + job.bitmap : '') +
			': ' + size(job['current-progress']) + ' of ' + size(job['total-progress']) +
			(job['time-left'] !== undefined ? ', ' + span(job['time-left']) + ' left' : '')));
}

function clientRow(client, now) {
	return element('article', {class: 'row'},
		element('div', {class: 'head'}, element('span', {class: 'name'}, client.identity || client.peer),
			element('span', {class: 'faint'}, client.tls ? 'TLS' : 'no TLS')),
		element('p', {class: 'faint'}, (client.export ? 'reads ' + client.export : 'has chosen nothing yet') + ', for ' +
			span(now - client.since) + ': ' + client.requests + ' requests, ' + size(client['bytes-read']) +
			(client.errors > 0 ? ', ' + client.errors + ' errors' : '')));
}

function showList(id, rows, none) {
	document.getElementById(id).replaceChildren(...(rows.length > 0 ? rows : [empty(none)]));
}

// --- asking

async function ask(what) {
	const answer = await fetch('api/' + what, {credentials: 'omit', cache: 'no-store'});
	if (!(answer.headers.get('Content-Type') || '').startsWith('application/json'))
		throw new Error(await answer.text());
	const value = await answer.json();
	if (value !== null && value.error)
		throw new Error(value.error.desc);
	return value;
}

function isChoosing() {
	return document.activeElement !== null && document.activeElement.tagName === 'SELECT';
}

async function show() {
	const [disks, checkpoints, backups, jobs, server, blocks] = await Promise.all(
		['disks', 'checkpoints', 'backups', 'jobs', 'nbd-server', 'block'].map(ask));
	const now = Date.now() / 1000;
	const bitmaps = new Map(blocks.map((b) => [b.device, b['dirty-bitmaps'] || []]));
	const all = {checkpoints, backups, bitmaps, maps: []};

	if (!isChoosing() || ++skipped > SKIPPED_MOST) {
		skipped = 0;
		const cards = disks.map((d) => diskCard(d, all, now));
		await Promise.all(all.maps.map((draw) => draw()));
		showList('disks', cards, 'There is no disk yet: nbdkit with the varve plugin makes one.');
	}
	showBackups(backups, now);
	showList('jobs', jobs.map(jobRow), 'There is no job.');
	showList('clients', server.clients.map((c) => clientRow(c, now)), 'No NBD client is connected.');
}

async function refresh() {
	const line = document.getElementById('now');
	try {
		if (!document.hidden) {
			await show();
			line.textContent = 'as of ' + new Date().toLocaleTimeString();
			line.className = '';
		}
	} catch (e) {
		line.textContent = 'varved does not answer: ' + e.message;
		line.className = 'lost';
	}
	setTimeout(refresh, EVERY_MS);
}

ask('version').then((v) => {
	const n = v.varve;
	document.getElementById('version').textContent = 'varved ' + n.major + '.' + n.minor + '.' + n.micro +
		'. This page changes nothing.';
}).catch(() => {});
refresh();
