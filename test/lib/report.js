// What a browser, Mermaid and Graphviz make of what saga.report() and
// saga.diagram() have written, as one object of JSON for 680_report.pl.
//
// usage: node report.js PACKAGES FILES
//   PACKAGES   where axe-core, Mermaid and Graphviz are
//   FILES      report.html, plain.html, *.mmd and *.dot
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { Browser } = require('./chromium.js');

const [packages, files] = process.argv.slice(2);
const source = (...names) => fs.readFileSync(path.join(packages, ...names), 'utf8');
const url = (name) => `file://${path.resolve(files, name)}`;
const named = (ending) => fs.readdirSync(files).filter((name) => name.endsWith(ending)).sort();

// What is there to be seen of a table: its rows, without what the windows of
// time hide.
const TABLES = `Object.fromEntries(Array.from(document.querySelectorAll('table[id]'), (table) =>
	[table.id, Array.from(table.tBodies[0].rows).filter((row) => !row.hidden).map((row) =>
		Array.from(row.cells).filter((cell) => cell.checkVisibility()).map((cell) => cell.innerText.trim()))]))`;
const HEADS = `Array.from(document.querySelectorAll('#t-health thead th')).filter((th) => th.checkVisibility())
	.map((th) => th.className)`;

async function axe(page) {
	return page.evaluate(`${source('axe-core', 'package', 'axe.min.js')};
		axe.run(document, { resultTypes: ['violations', 'incomplete'] }).then((result) => ({
			passes: result.passes.length,
			violations: result.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html.slice(0, 200)).join(', ')) }))`);
}

async function key(page, name, code, text) {
	const event = { key: name, code: name, windowsVirtualKeyCode: code, text };
	await page.send('Input.dispatchKeyEvent', { type: 'keyDown', ...event });
	await page.send('Input.dispatchKeyEvent', { type: 'keyUp', ...event });
}

async function look_at_report(browser) {
	const page = await browser.page();
	const facts = { axe: {} };

	await page.resize(1280, 900);
	await page.prefer('light');
	await page.open(url('report.html'));
	facts.title = await page.evaluate('document.title');
	facts.mode = await page.evaluate('document.compatMode');
	facts.tables = await page.evaluate(TABLES);
	facts.heads = { w1h: await page.evaluate(HEADS) };
	facts.elements = await page.evaluate(`Array.from(new Set(Array.from(document.querySelectorAll('*'), (e) => e.localName))).sort()`);
	facts.scripts = await page.evaluate(`document.querySelectorAll('script').length`);
	facts.handlers = await page.evaluate(`Array.from(document.querySelectorAll('*')).flatMap((e) => e.getAttributeNames())
		.filter((name) => /^on|^style$|^src$/.test(name))`);
	facts.links = await page.evaluate(`Array.from(document.querySelectorAll('[href]'), (e) => e.getAttribute('href'))`);
	facts.dead_links = await page.evaluate(`Array.from(document.querySelectorAll('a'), (e) => e.getAttribute('href'))
		.filter((href) => !document.getElementById(href.slice(1)))`);
	facts.twice = await page.evaluate(`(() => { const ids = Array.from(document.querySelectorAll('[id]'), (e) => e.id);
		return ids.filter((id, n) => ids.indexOf(id) !== n); })()`);
	facts.ascii = /^[\n\t\x20-\x7e]*$/.test(fs.readFileSync(path.join(files, 'report.html'), 'latin1'));
	facts.tiles = await page.evaluate(`Object.fromEntries(Array.from(document.querySelectorAll('.tiles div'), (e) =>
		[e.querySelector('dt').innerText, e.querySelector('dd').firstChild.textContent]))`);
	facts.sagas = await page.evaluate(`Object.fromEntries(Array.from(document.querySelectorAll('article'), (a) => [a.id, {
		heading: a.querySelector('h3').innerText, status: a.querySelector('.pill').innerText, text: a.innerText,
		boxes: Array.from(a.querySelectorAll('.graph g'), (g) => [g.querySelector('title').textContent, g.getAttribute('class')]),
		edges: a.querySelectorAll('.graph path.edge').length,
		gantt: Array.from(a.querySelectorAll('.gantt tbody tr'), (tr) =>
			[tr.cells[0].innerText, tr.cells[4].innerText, Array.from(new Set(Array.from(tr.querySelectorAll('rect'), (r) => r.getAttribute('class')))).join()]),
		outside: Array.from(a.querySelectorAll('.gantt rect')).filter((r) => {
			const box = r.getBoundingClientRect(), all = r.ownerSVGElement.getBoundingClientRect();
			return box.left < all.left - 1 || box.right > all.right + 4; }).length,
		unseen: Array.from(a.querySelectorAll('.gantt tbody svg')).filter((svg) => svg.querySelector('rect') &&
			!Array.from(svg.querySelectorAll('rect')).some((r) => r.getBoundingClientRect().width >= 2)).length }]))`);
	facts.axe.light = await axe(page);

	// Sorting, by a click and by the keyboard.
	const click = (selector) => page.evaluate(`document.querySelector('${selector}').click()`);
	const column = (table, n) => page.evaluate(`Array.from(document.getElementById('${table}').tBodies[0].rows, (r) => r.cells[${n}].innerText)`);
	facts.sort = {};
	await click('#t-steps thead th:nth-child(4) button');
	facts.sort.down = await column('t-steps', 3);
	facts.sort.state = await page.evaluate(`document.querySelector('#t-steps thead th:nth-child(4)').getAttribute('aria-sort')`);
	await page.evaluate(`document.querySelector('#t-steps thead th:nth-child(4) button').focus()`);
	await key(page, 'Enter', 13, '\r');
	facts.sort.up = await column('t-steps', 3);
	await click('#t-steps thead th:nth-child(1) button');
	facts.sort.text = await column('t-steps', 0);
	facts.sort.states = await page.evaluate(`document.querySelectorAll('#t-steps [aria-sort]').length`);

	// Filtering, by typing.
	await page.evaluate(`document.querySelector('.filter[data-for="t-stuck"] input').focus()`);
	await page.send('Input.insertText', { text: 'PICKY  key-7' });
	facts.filter = { rows: (await page.evaluate(TABLES))['t-stuck'],
		said: await page.evaluate(`document.querySelector('.filter[data-for="t-stuck"] output').textContent`) };
	await page.prefer('dark');
	facts.axe.dark = await axe(page);
	await page.prefer('light');
	await page.send('Input.insertText', { text: ' <nothing>' });
	facts.filter.none = (await page.evaluate(TABLES))['t-stuck'].length;
	await page.evaluate(`(() => { const i = document.querySelector('.filter[data-for="t-stuck"] input');
		i.value = ''; i.dispatchEvent(new Event('input')); })()`);
	facts.filter.all = (await page.evaluate(TABLES))['t-stuck'].length;

	// The windows of time.
	for (const w of ['w1m', 'w1d']) {
		await click(`#${w}`);
		facts.heads[w] = await page.evaluate(HEADS);
	}
	facts.columns = await page.evaluate(`Array.from(document.querySelectorAll('table')).filter((t) =>
		Array.from(t.rows).some((r) => r.cells.length !== t.rows[0].cells.length)).length`);

	// The keyboard finds the link past the navigation first.
	await page.open(url('report.html'));
	await key(page, 'Tab', 9);
	facts.first = await page.evaluate(`document.activeElement.getAttribute('href')`);
	await key(page, 'Enter', 13, '\r');
	facts.skipped_to = await page.evaluate(`document.activeElement.id`);

	// Themes.
	const colours = () => page.evaluate(`[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color].join(' ')`);
	facts.colours = { light: await colours() };
	await page.prefer('dark');
	facts.colours.dark = await colours();
	await click('button.theme');
	facts.colours.chosen = await colours();
	facts.theme = await page.evaluate(`document.querySelector('button.theme').innerText`);
	await page.prefer('light');
	await click('button.theme');
	facts.colours.chosen_dark = await colours();
	await click('button.theme');

	// A phone.
	await page.resize(360, 740, true);
	await page.open(url('report.html'));
	facts.phone = await page.evaluate(`[document.documentElement.scrollWidth, innerWidth]`);
	facts.axe.phone = await axe(page);
	facts.complaints = [...page.complaints];
	facts.requests = [...page.requests];

	// Nothing that gets in would do anything.
	await page.evaluate(`document.body.insertAdjacentHTML('beforeend',
		'<button id="evil" onclick="window.pwned = 1">x</button><img src="data:," onerror="window.pwned = 1">'),
		document.getElementById('evil').click()`);
	facts.pwned = await page.evaluate(`(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 1';
		document.body.appendChild(s); return window.pwned; })() === 1`);

	// Without its script it shows the same.
	await page.resize(1280, 900);
	await page.send('Emulation.setScriptExecutionDisabled', { value: true });
	await page.open(url('report.html'));
	facts.without = await page.evaluate(TABLES);
	facts.hidden = await page.evaluate(`Array.from(document.querySelectorAll('.filter, button.theme')).filter((e) => e.checkVisibility()).length`);
	return facts;
}

// The page of one who sees nothing.
async function look_at_plain(browser) {
	const page = await browser.page();

	await page.open(url('plain.html'));
	return { tables: await page.evaluate(TABLES), sagas: await page.evaluate(`document.querySelectorAll('article').length`),
		text: await page.evaluate('document.body.innerText'), axe: await axe(page), complaints: page.complaints };
}

async function draw_mermaid(browser) {
	const page = await browser.page();
	const facts = {};

	await page.evaluate(`document.write('<!DOCTYPE html><title>x</title><body>'), document.close()`);
	await page.evaluate(source('mermaid', 'package', 'dist', 'mermaid.tiny.js'));
	await page.evaluate(`mermaid.initialize({ startOnLoad: false, securityLevel: 'strict' })`);
	for (const name of named('.mmd')) {
		const text = fs.readFileSync(path.join(files, name), 'utf8');
		facts[name] = await page.evaluate(`mermaid.render('g${Object.keys(facts).length}', ${JSON.stringify(text)}).then(({ svg }) => {
			const e = document.createElement('div');
			e.innerHTML = svg;
			document.body.appendChild(e);
			return { labels: Array.from(e.querySelectorAll('.nodeLabel'), (n) => n.innerText),
				edges: e.querySelectorAll('.edgePaths path').length,
				foreign: e.querySelectorAll('script, img, a, [onclick], [onload], [onerror]').length,
				classes: Array.from(e.querySelectorAll('.node'), (n) => n.getAttribute('class')) };
		}).catch((error) => ({ error: String(error) }))`);
	}
	return { drawn: facts, complaints: page.complaints };
}

// What a text of SVG says.
function characters(text) {
	const names = { lt: '<', gt: '>', quot: '"', amp: '&' };

	return text.replace(/&(#?)(\w+);/g, (all, number, name) => number ? String.fromCodePoint(Number(name)) : names[name]);
}

async function draw_dot() {
	const { instance } = require(path.resolve(packages, 'viz', 'package', 'dist', 'viz.cjs'));
	const viz = await instance();
	const facts = {};

	for (const name of named('.dot')) {
		const { status, output, errors } = viz.render(fs.readFileSync(path.join(files, name), 'utf8'), { format: 'svg' });
		const wrong = errors.filter((e) => e.level !== 'warning');
		facts[name] = status === 'success' && wrong.length === 0 ?
			{ labels: output.split('<g id="node').slice(1).map((g) =>
				Array.from(g.split('</g>')[0].matchAll(/<text[^>]*>([^<]*)</g), (m) => characters(m[1])).join('\n')),
				edges: output.split('<g id="edge').length - 1 } :
			{ error: wrong.map((e) => e.message).join('; ') };
	}
	return facts;
}

async function main() {
	const browser = new Browser('chromium');

	try {
		const facts = { report: await look_at_report(browser), plain: await look_at_plain(browser),
			mermaid: await draw_mermaid(browser), dot: await draw_dot() };
		process.stdout.write(JSON.stringify(facts));
	} finally {
		await browser.close();
	}
}

main().catch((error) => {
	console.error(error);
	process.exit(1);
});
