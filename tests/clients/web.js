// Drives the page in Chromium as a person does who has a keyboard and no mouse.
// Arguments: what to look at, the address, and for `token` the file of the token, for `grpc-web` another
// site, on 127.0.0.1, that the server answers.
// PRESSMARK_TEST_SHOTS names a folder for pictures of what was seen.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { chromium } = require('playwright-core');

const [mode, address, extra] = process.argv.slice(2);
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];
// Milliseconds, longer than anything here may take on a busy machine.
const PATIENCE = 120_000;
const WIDE = { width: 1200, height: 900 };
const PHONE = { width: 375, height: 812 };

let browser;
let context;
const complaints = [];

/** Opens the page; whatever it complains of fails the test at the end. */
async function open(target, options = {}) {
  await context?.close();
  context = await browser.newContext({ viewport: WIDE, ignoreHTTPSErrors: true, ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on('pageerror', (error) => complaints.push(error.stack));
  page.on('console', (message) => {
    // An answer of 400, 401, 404 or 429 is one that the page handles, and the browser tells of it all the same.
    const isExpected = message.text().includes('Failed to load resource') && /status of (40[014]|429)/.test(message.text());
    if (['error', 'warning'].includes(message.type()) && !isExpected) complaints.push(message.text());
  });
  page.on('dialog', (dialog) => complaints.push(`dialog: ${dialog.message()}`));
  page.on('request', (request) => {
    const { origin } = new URL(request.url());
    if (origin !== new URL(address).origin) complaints.push(`asked elsewhere: ${request.url()}`);
  });
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(address + target);
  await idle(page);
  return page;
}

const idle = (page) => page.waitForFunction(() => !document.querySelector('[aria-busy]') && document.querySelector('main > :not([hidden])'));

/** Does what changes the address, and waits until the page has drawn what that means. */
async function changing(page, act) {
  await page.evaluate(() => {
    window.changed = new Promise((done) => { addEventListener('hashchange', done, { once: true }); });
  });
  await act();
  await page.evaluate(() => window.changed);
  await idle(page);
}

async function shoot(page, name) {
  if (process.env.PRESSMARK_TEST_SHOTS) {
    await page.screenshot({ path: path.join(process.env.PRESSMARK_TEST_SHOTS, `${name}.png`) });
  }
}

const titles = (page) => page.locator('#list .list a').allTextContents();
const shown = (page, text) => page.locator('#list .list a', { hasText: text }).first().waitFor();
const focused = (page) => page.evaluate(() => {
  const { id, tagName, textContent } = document.activeElement;
  return { id, tag: tagName.toLowerCase(), text: textContent.slice(0, 60) };
});

/** Presses Tab until something has the focus, which has to be seen there. */
async function tabTo(page, wanted) {
  for (let presses = 0; presses < 60; presses += 1) {
    await page.keyboard.press('Tab');
    const at = await focused(page);
    if (wanted(at)) {
      const isSeen = await page.evaluate(() => {
        const style = getComputedStyle(document.activeElement);
        const hit = document.activeElement.querySelector('.hit');
        return style.outlineStyle !== 'none' || (hit && getComputedStyle(hit).stroke !== 'none');
      });
      assert.ok(isSeen, `the focus on ${JSON.stringify(at)} is not seen`);
      return at;
    }
  }
  throw new Error(`Tab does not lead to ${wanted}`);
}

async function readsTimeline() {
  const page = await open('/');
  assert.match(await page.locator('#summary').textContent(), /^85 articles from 9 sources$/);
  const bars = page.locator('.column');
  assert.ok(await bars.count() >= 40, 'a bar a day');
  const label = await bars.first().getAttribute('aria-label');
  assert.match(label, /^Thu, 1 January 2026: 2 articles \(/);
  const legend = await page.locator('.legend li').allTextContents();
  assert.strictEqual(legend.length, 6, 'five sources and the others');
  // The bars, their labels and the table say the same.
  await page.locator('details summary').press('Enter');
  const rows = await page.locator('tbody tr').count();
  const [first, ...cells] = await page.locator('tbody tr').first().locator('th, td').allTextContents();
  assert.strictEqual(first, 'Thu, 1 January 2026');
  assert.strictEqual(cells[0], '2');
  assert.strictEqual(cells.slice(1).reduce((sum, cell) => sum + Number(cell), 0), 2);
  assert.ok(rows >= 40, `${rows} rows`);
  await page.locator('details summary').press('Enter');
  // What is drawn is as high as what is counted.
  const heights = await bars.evaluateAll((all) => all.map((bar) => {
    const parts = [...bar.querySelectorAll('rect:not(.hit)')];
    return [Number(bar.getAttribute('aria-label').match(/: (\d+)/)[1]), parts.reduce((sum, part) => sum + Number(part.getAttribute('height')), 0)];
  }));
  const unit = heights[0][1] / heights[0][0];
  for (const [size, height] of heights) assert.ok(Math.abs(height - size * unit) < 1, `${size} is ${height} high`);
  await shoot(page, 'light');

  // So many sources that they cannot be counted by year: the largest of all are drawn.
  const drawn = await page.locator('.legend').textContent();
  const refusal = { error: { reason: 'TOO_MANY_BUCKETS', message: 'too many' } };
  await page.route('**/api/timeline?bucket=year&by_source=true', (route) => route.fulfill({ status: 429, json: refusal }));
  await page.reload();
  await idle(page);
  assert.strictEqual(await page.locator('.legend').textContent(), drawn);
}

async function worksByKeyboard() {
  const page = await open('/');
  await page.keyboard.press('Tab');
  assert.strictEqual((await focused(page)).id, 'skip');
  // A bar opens its day, then the list has that day's articles alone.
  await tabTo(page, ({ tag }) => tag === 'g');
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('End');
  await page.keyboard.press('ArrowLeft');
  await shoot(page, 'bar');
  const [, size] = (await page.evaluate(() => document.activeElement.getAttribute('aria-label'))).match(/: (\d+) article/);
  await changing(page, () => page.keyboard.press('Enter'));
  assert.strictEqual((await titles(page)).length, Number(size));
  assert.strictEqual((await focused(page)).id, 'list-title');
  await changing(page, () => page.goBack());
  assert.strictEqual((await titles(page)).length, 50);

  // The next page, and back.
  await tabTo(page, ({ id }) => id === 'next');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.getElementById('page').textContent === 'Page 2');
  assert.strictEqual((await titles(page)).length, 35);
  await page.locator('#previous').press('Enter');
  await page.waitForFunction(() => document.getElementById('page').textContent === 'Page 1');
  assert.strictEqual((await titles(page)).length, 50);

  // Search, open what is found, and come back to where one was.
  await page.locator('#words').focus();
  await page.keyboard.type('budget');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.getElementById('count').textContent === '3 articles found');
  assert.ok(await page.locator('mark').count() >= 3);
  await shoot(page, 'search');
  await tabTo(page, ({ text }) => text === 'A budget, corrected');
  await page.keyboard.press('Enter');
  await page.locator('#revisions-title + div .list').waitFor();
  await idle(page);
  assert.deepStrictEqual(await focused(page), { id: 'title', tag: 'h1', text: 'A budget, corrected' });
  assert.strictEqual(await page.title(), 'A budget, corrected - pressmark');
  const id = await page.locator('.facts code').first().textContent();
  assert.match(id, /^[0-9a-f]{64}$/);
  assert.strictEqual(new URL(page.url()).hash, `#/article/${id}`);
  const revisions = await page.locator('#revisions-title + div .list > li').allTextContents();
  assert.strictEqual(revisions.length, 2);
  assert.match(revisions[1], /number 2, this one/);
  const copies = page.locator('#copies-title + div .list > li');
  assert.match((await copies.allTextContents()).join(), /alike/);
  const link = page.locator('.facts a');
  assert.strictEqual(await link.getAttribute('href'), 'https://gazette.example/budget');
  assert.match(await link.getAttribute('rel'), /noopener noreferrer/);
  await shoot(page, 'article');
  // Its other text is one Enter away, with an exact copy in another paper.
  await page.locator('#revisions-title + div a').first().press('Enter');
  await page.waitForFunction(() => document.getElementById('title')?.textContent === 'A budget');
  await page.locator('.tag', { hasText: 'same body' }).waitFor();
  await page.goBack();
  await page.waitForFunction(() => document.getElementById('title')?.textContent === 'A budget, corrected');
  await page.locator('.back').press('Enter');
  await page.waitForFunction(() => document.activeElement.textContent === 'A budget, corrected');
  assert.strictEqual(await page.locator('#words').inputValue(), 'budget');
}

async function filters() {
  const page = await open('/');
  await page.locator('#source').fill('Gazette');
  await changing(page, () => page.locator('#source').press('Enter'));
  const sources = await page.locator('#list .meta > :first-child').allTextContents();
  assert.ok(sources.length > 5 && sources.every((source) => source === 'Gazette'), sources.join());
  // A change before the answer to the one before it leaves nothing of that behind.
  await page.locator('#from').fill('2026-01-10');
  await changing(page, () => page.locator('#order').selectOption('published-asc'));
  await page.locator('#chips li', { hasText: 'from 2026-01-10' }).waitFor();
  const [first] = await page.locator('#list .meta > :nth-child(2)').allTextContents();
  assert.match(first, /^1\d Jan 2026/);
  assert.match(await page.locator('.readout').textContent(), /, 1\d January 2026 to 11 February 2026/);
  // The address alone brings it all back, and reloading with it changes nothing.
  const before = await titles(page);
  await page.reload();
  await idle(page);
  assert.deepStrictEqual(await titles(page), before);
  await changing(page, () => page.locator('#bucket').selectOption('month'));
  assert.match(await page.locator('.column').first().getAttribute('aria-label'), /^January 2026: /);
  await changing(page, () => page.locator('.clear').press('Enter'));
  assert.strictEqual(await page.locator('#chips li').count(), 0);
  assert.strictEqual((await titles(page)).length, 50);

  await page.goto(`${address}/#/?q=nothinglikethis`);
  await page.locator('#list strong').waitFor();
  assert.strictEqual(await page.locator('#list strong').textContent(), 'No article matches');
  await shoot(page, 'none');
  await page.goto(`${address}/#/?q=${encodeURIComponent('"open')}`);
  await page.locator('[role=alert]').waitFor();
  await shoot(page, 'wrong');
  await page.goto(`${address}/#/article/${'0'.repeat(64)}`);
  await page.locator('#reading [role=alert]').waitFor();
  assert.match(await page.locator('#reading [role=alert] p').textContent(), /0000/);
}

async function neverRunsText() {
  const page = await open('/#/?q=zebra');
  const [title] = await titles(page);
  assert.ok(title.startsWith('<script>document.title'), title);
  assert.strictEqual(await page.locator('#list script, #list img, #list i, #list b').count(), 0);
  await page.locator('#list .list a').press('Enter');
  await page.locator('#title').waitFor();
  await idle(page);
  assert.ok((await page.locator('.text').textContent()).startsWith('</div><img src=x onerror='));
  assert.strictEqual(await page.locator('main script, main img, main i, main b').count(), 0);
  assert.strictEqual(await page.locator('.facts a').count(), 0, 'a URL that is none of the web is no link');
  assert.match(await page.locator('.facts').textContent(), /javascript:document/);
  assert.notStrictEqual(await page.title(), 'run');
  await shoot(page, 'evil');
  await page.goto(`${address}/#/`);
  await page.locator('.legend').waitFor();
  await idle(page);
  assert.notStrictEqual(await page.title(), 'run');
  // And could not, had the script a mistake.
  const own = await browser.newContext();
  own.setDefaultTimeout(PATIENCE);
  const other = await own.newPage();
  await other.goto(address);
  const blocked = await other.evaluate(() => {
    try {
      document.body.innerHTML = '<img src=x onerror="document.title = \'run\'">';
      return false;
    } catch {
      return true;
    }
  });
  assert.ok(blocked, 'text became HTML');
  await own.close();
}

async function showsLightAndDark() {
  const ground = {};
  for (const colorScheme of ['light', 'dark']) {
    const page = await open('/', { colorScheme });
    ground[colorScheme] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await contrasts(page, colorScheme);
    await shoot(page, colorScheme);
    const phone = await open('/', { colorScheme, viewport: PHONE, deviceScaleFactor: 2 });
    const isWider = await phone.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    assert.ok(!isWider, 'a phone does not scroll sideways');
    await shoot(phone, `phone-${colorScheme}`);
    await phone.locator('#list .list a').first().press('Enter');
    await phone.locator('#title').waitFor();
    await idle(phone);
    await contrasts(phone, colorScheme);
    assert.ok(!await phone.evaluate(() => document.documentElement.scrollWidth > innerWidth));
    await shoot(phone, `phone-article-${colorScheme}`);
  }
  assert.notStrictEqual(ground.light, ground.dark);
}

/** Text has to stand out from what is behind it: 4.5 to 1, as WCAG 2.2 AA asks. */
async function contrasts(page, name) {
  const weak = await page.evaluate(() => {
    const channels = (text) => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    }).reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (node) => {
      for (let at = node; at; at = at.parentElement) {
        const colour = channels(getComputedStyle(at).backgroundColor);
        if (colour.length < 4 || colour[3] === 1) return colour;
      }
      return [255, 255, 255];
    };
    const found = [];
    for (const node of document.querySelectorAll('body *')) {
      const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
      if (!hasText || !node.checkVisibility() || node.disabled || node.closest('svg, noscript, .away, .skip')) continue;
      const [one, two] = [light(channels(getComputedStyle(node).color)), light(ground(node))];
      const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
      if (ratio < 4.5) found.push(`${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return found;
  });
  assert.deepStrictEqual(weak, [], name);
}

async function isEmpty() {
  const page = await open('/');
  assert.strictEqual(await page.locator('#list strong').textContent(), 'This archive is empty');
  assert.strictEqual(await page.locator('svg').count(), 0);
  await shoot(page, 'empty');
}

async function asksForToken() {
  const page = await open('/');
  await page.locator('#signing').waitFor();
  assert.strictEqual((await focused(page)).id, 'token');
  await shoot(page, 'token');
  await page.keyboard.type('pm_wrong');
  await page.keyboard.press('Enter');
  await page.locator('#signing-reason', { hasText: 'refuses' }).waitFor();
  assert.strictEqual((await focused(page)).id, 'token');
  await page.keyboard.type(fs.readFileSync(extra, 'utf8').trim());
  await page.keyboard.press('Enter');
  await page.locator('#list strong').waitFor();
  assert.strictEqual((await focused(page)).id, 'words');
  const protocols = await page.evaluate(() => performance.getEntriesByType('resource').map((entry) => entry.nextHopProtocol));
  assert.ok(protocols.includes('h2'), protocols.join());
  assert.ok(!page.url().includes('pm_'));
  await page.reload();
  await page.locator('#list strong').waitFor();
  await page.locator('#forget').press('Enter');
  await page.locator('#signing').waitFor();
  assert.strictEqual(await page.evaluate(() => sessionStorage.length), 0);
}

/** A page of another site calls by gRPC-Web, if that site is one that the server answers. */
async function callsGrpcWeb() {
  const call = async (site) => {
    const own = await browser.newContext();
    own.setDefaultTimeout(PATIENCE);
    const page = await own.newPage();
    await page.goto(`${site}/`);
    const answer = await page.evaluate(async (server) => {
      try {
        const response = await fetch(`${server}/pressmark.v1.ArticleService/CountArticles`, {
          method: 'POST', headers: { 'content-type': 'application/grpc-web+proto', 'x-grpc-web': '1' }, body: new Uint8Array(5),
        });
        return { status: response.status, id: response.headers.get('x-request-id'), bytes: [...new Uint8Array(await response.arrayBuffer())] };
      } catch (error) {
        return { error: String(error) };
      }
    }, address);
    await own.close();
    return answer;
  };
  const answer = await call(extra);
  assert.strictEqual(answer.status, 200, JSON.stringify(answer));
  assert.ok(answer.id);
  assert.deepStrictEqual(answer.bytes.slice(0, 7), [0, 0, 0, 0, 4, 8, 85], 'field 1 is 85 articles');
  assert.match(String.fromCharCode(...answer.bytes), /grpc-status:\s*0/);
  const refused = await call(extra.replace('127.0.0.1', 'localhost'));
  assert.match(refused.error ?? '', /Failed to fetch/);
}

const MODES = {
  empty: [isEmpty],
  page: [readsTimeline, worksByKeyboard, filters, neverRunsText, showsLightAndDark],
  token: [asksForToken],
  'grpc-web': [callsGrpcWeb],
};

async function main() {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'pressmark-chromium-'));
  // playwright gives every launch a profile of its own, below this folder.
  process.env.TMPDIR = profile;
  browser = await chromium.launch({ executablePath: process.env.PRESSMARK_TEST_CHROMIUM ?? '/usr/bin/chromium', headless: true, args: FLAGS, timeout: PATIENCE });
  try {
    for (const check of MODES[mode]) {
      await check();
      assert.deepStrictEqual(complaints, [], check.name);
      console.log(`${check.name}: ok`);
    }
  } finally {
    await browser.close();
    fs.rmSync(profile, { recursive: true, force: true });
  }
  console.log('the browser is content');
}

main().catch((error) => {
  console.error(error, complaints);
  process.exit(1);
});
