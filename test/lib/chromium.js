// A headless chromium, driven by its DevTools protocol over a pipe: needs
// nothing but node.
'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const PATIENCE = 60000;

class Browser {
	constructor(program) {
		this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'saga-chromium-'));
		this.calls = new Map();
		this.listeners = [];
		this.last = 0;
		this.said = '';
		// Only pages that the tests have made are opened: the sandbox, which
		// containers seldom allow, protects nobody here.
		this.process = spawn(program, [
			'--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
			'--no-first-run', '--disable-background-networking', '--disable-extensions',
			'--disable-component-update', '--hide-scrollbars', '--remote-debugging-pipe',
			`--user-data-dir=${this.directory}`, 'about:blank'],
			{ stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'],
				env: { ...process.env, HOME: this.directory, XDG_CONFIG_HOME: this.directory,
					XDG_CACHE_HOME: this.directory } });
		this.process.stderr.on('data', (data) => { this.said = (this.said + data).slice(-4000); });
		this.process.on('exit', (code) => this.fail(new Error(`${program} has ended (${code}):\n${this.said}`)));
		this.process.on('error', (error) => this.fail(error));
		this.process.stdio[3].on('error', (error) => this.fail(error));
		let rest = Buffer.alloc(0);
		this.process.stdio[4].on('data', (data) => {
			rest = Buffer.concat([rest, data]);
			for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) {
				this.take(JSON.parse(rest.subarray(0, end).toString()));
			}
		});
	}

	fail(error) {
		this.error = error;
		for (const call of this.calls.values()) { call.reject(error); }
		this.calls.clear();
	}

	take(message) {
		const call = this.calls.get(message.id);
		if (call === undefined) {
			for (const listener of this.listeners) { listener(message); }
			return;
		}
		this.calls.delete(message.id);
		clearTimeout(call.timer);
		if (message.error) {
			call.reject(new Error(`${call.method}: ${message.error.message}`));
		} else {
			call.resolve(message.result);
		}
	}

	send(method, params = {}, sessionId = undefined) {
		return new Promise((resolve, reject) => {
			if (this.error) { reject(this.error); return; }
			const id = ++this.last;
			const timer = setTimeout(() => reject(new Error(`timed out waiting for ${method}`)), PATIENCE);
			this.calls.set(id, { resolve, reject, method, timer });
			this.process.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + '\0');
		});
	}

	async page() {
		const { targetId } = await this.send('Target.createTarget', { url: 'about:blank' });
		const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
		const page = new Page(this, sessionId);
		for (const domain of ['Page', 'Runtime', 'Log', 'Network']) { await page.send(`${domain}.enable`); }
		return page;
	}

	async close() {
		this.process.removeAllListeners('exit');
		const gone = new Promise((resolve) => { this.process.once('exit', resolve); });
		await this.send('Browser.close').catch(() => this.process.kill('SIGKILL'));
		await gone;
		fs.rmSync(this.directory, { recursive: true, force: true, maxRetries: 5 });
	}
}

class Page {
	constructor(browser, sessionId) {
		this.browser = browser;
		this.sessionId = sessionId;
		this.complaints = [];		// what the console has of errors and warnings
		this.requests = [];			// what was asked for, beside the page itself
		browser.listeners.push((message) => {
			if (message.sessionId === sessionId) { this.take(message); }
		});
	}

	take({ method, params }) {
		if (method === 'Runtime.exceptionThrown') {
			this.complaints.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
		} else if (method === 'Runtime.consoleAPICalled' && ['error', 'warning', 'assert'].includes(params.type)) {
			this.complaints.push(params.args.map((a) => a.value ?? a.description).join(' '));
		} else if (method === 'Log.entryAdded' && ['error', 'warning'].includes(params.entry.level)) {
			this.complaints.push(params.entry.text);
		} else if (method === 'Page.javascriptDialogOpening') {
			this.complaints.push(`dialog: ${params.message}`);
			this.send('Page.handleJavaScriptDialog', { accept: true });
		} else if (method === 'Network.requestWillBeSent' && params.type !== 'Document') {
			this.requests.push(params.request.url);
		} else if (method === 'Page.loadEventFired') {
			this.loaded?.();
		}
	}

	send(method, params) { return this.browser.send(method, params, this.sessionId); }

	async open(url) {
		const loaded = new Promise((resolve) => { this.loaded = resolve; });
		const { errorText } = await this.send('Page.navigate', { url });
		if (errorText) { throw new Error(`${url}: ${errorText}`); }
		await loaded;
	}

	// The value of an expression, which may be a promise.
	async evaluate(expression) {
		const { result, exceptionDetails } = await this.send('Runtime.evaluate',
			{ expression, awaitPromise: true, returnByValue: true });
		if (exceptionDetails) {
			throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
		}
		return result.value;
	}

	resize(width, height, mobile = false) {
		return this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile });
	}

	prefer(scheme) {
		return this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] });
	}

	async screenshot(file) {
		const { data } = await this.send('Page.captureScreenshot', { format: 'png', captureBeyondViewport: true });
		fs.writeFileSync(file, Buffer.from(data, 'base64'));
	}
}

module.exports = { Browser };
