// The page: asks the server for data and draws them. Whatever comes from an article becomes the text
// of a node, never HTML. The address behind the # holds all that is shown, so that it can be kept,
// sent and gone back to.
'use strict';

const PAGE_SIZE = 50;
const BARS_MAX = 1500;
const TOP_SOURCES = 5;
const SOURCE_PAGES_MAX = 5;
const DAY = 86400000;
const TOKEN = 'pressmark-token';
const FILTERS = ['q', 'source', 'after', 'before', 'order', 'bucket'];
const ORDERS = {
  list: [['', 'newest first'], ['published-asc', 'oldest first'], ['arrival-desc', 'last stored first'], ['arrival-asc', 'first stored first']],
  search: [['', 'best match first'], ['published-desc', 'newest first'], ['published-asc', 'oldest first']],
};

const $ = (id) => document.getElementById(id);

/** Makes an element; texts among the children stay texts. */
function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith('svg:')
    ? document.createElementNS('http://www.w3.org/2000/svg', tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== ''));
  return node;
}

// ---- numbers and dates, which are all in UTC

const count = (number, one, many = `${one}s`) => `${number.toLocaleString('en')} ${number === 1 ? one : many}`;
const shape = (options) => new Intl.DateTimeFormat('en-GB', { timeZone: 'UTC', ...options });
const FORMATS = {
  time: shape({ day: 'numeric', month: 'short', year: 'numeric', hour: '2-digit', minute: '2-digit' }),
  hour: shape({ day: 'numeric', month: 'long', year: 'numeric', hour: '2-digit', minute: '2-digit' }),
  day: shape({ weekday: 'short', day: 'numeric', month: 'long', year: 'numeric' }),
  week: shape({ day: 'numeric', month: 'long', year: 'numeric' }),
  month: shape({ month: 'long', year: 'numeric' }),
  year: shape({ year: 'numeric' }),
};
const TICKS = {
  hour: shape({ hour: '2-digit', minute: '2-digit' }), day: shape({ day: 'numeric', month: 'short' }),
  week: shape({ day: 'numeric', month: 'short' }), month: shape({ month: 'short' }), year: shape({ year: 'numeric' }),
};
const time = (text) => (text ? FORMATS.time.format(new Date(text)) : 'undated');
const dayOf = (instant) => new Date(instant).toISOString().slice(0, 10);
const bucketName = (bucket, at) => (bucket === 'week' ? `week of ${FORMATS.week.format(at)}` : FORMATS[bucket].format(at));
const bytes = (number) => (number < 1024 ? count(number, 'byte') : `${(number / 1024).toLocaleString('en', { maximumFractionDigits: 1 })} KiB`);

/** The start of the bucket behind one. */
function behind(bucket, at) {
  const date = new Date(at);
  if (bucket === 'hour') return at + DAY / 24;
  if (bucket === 'day') return at + DAY;
  if (bucket === 'week') return at + 7 * DAY;
  if (bucket === 'month') return date.setUTCMonth(date.getUTCMonth() + 1);
  return date.setUTCFullYear(date.getUTCFullYear() + 1);
}

// ---- asking the server

class Refusal extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.reason = error.reason;
  }
}

let asking = new AbortController();

async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) if (one !== undefined && one !== '') query.append(name, one);
  }
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const text = query.toString();
  const answer = await fetch(`/api/${path}${text ? `?${text}` : ''}`, { headers, signal: asking.signal, cache: 'no-store' });
  const value = await answer.json();
  if (!answer.ok) throw new Refusal(answer.status, value.error);
  return value;
}

function rest(place) {
  place.removeAttribute('aria-busy');
  place.classList.remove('busy');
}

/** Runs what asks; an error is drawn in a place, and a missing token asked for. */
async function guarded(place, work) {
  place.setAttribute('aria-busy', 'true');
  place.classList.add('busy');
  const { signal } = asking;
  try {
    await work();
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) {
      signIn(error);
    } else {
      const what = error instanceof Refusal ? error.message : 'The server cannot be reached.';
      const again = make('button', { type: 'button', click: () => show() }, 'Try again');
      place.replaceChildren(make('div', { class: 'notice', role: 'alert' }, make('p', {}, what), again));
    }
  } finally {
    if (!signal.aborted) rest(place);
  }
}

function signIn(error) {
  asking.abort();
  document.querySelectorAll('[aria-busy]').forEach(rest);
  const known = sessionStorage.getItem(TOKEN);
  sessionStorage.removeItem(TOKEN);
  $('forget').hidden = true;
  $('signing-reason').textContent = known
    ? `The server refuses this token: ${error.message}.`
    : 'This archive is for those who have a token of it.';
  only('signing');
  document.title = 'pressmark';
  $('token').value = '';
  $('token').focus();
}

function only(part) {
  for (const id of ['signing', 'browsing', 'reading']) $(id).hidden = id !== part;
}

// ---- what is shown, and its address

let state = {};
let back = '#/';
let opened = '';
let sourceNames = [];
let sourcesLoaded;
const pages = new Map();

function read() {
  const [path, query = ''] = location.hash.slice(1).split('?');
  const given = new URLSearchParams(query);
  const filters = Object.fromEntries(FILTERS.map((name) => [name, given.get(name) ?? '']));
  filters.source = given.getAll('source');
  for (const name of ['after', 'before']) {
    if (!/^\d{4}-\d\d-\d\d$/.test(filters[name]) || Number.isNaN(Date.parse(filters[name]))) filters[name] = '';
  }
  const [, article] = path.match(/^\/article\/([0-9a-f]{8,64})$/) ?? [];
  return { article, token: given.get('page') ?? '', ...filters };
}

function addressOf(filters, token = '') {
  const query = new URLSearchParams();
  for (const name of FILTERS) for (const one of [filters[name]].flat()) if (one) query.append(name, one);
  if (token) query.append('page', token);
  const text = query.toString();
  return text ? `#/?${text}` : '#/';
}

// From the address and not from the state, which is behind it until the browser has told of a change.
const go = (changes) => { location.hash = addressOf({ ...read(), ...changes }); };
const selector = () => ({ source: state.source, after: state.after, before: state.before });
const isFiltered = () => Boolean(state.q || state.source.length || state.after || state.before);

async function show() {
  asking.abort();
  asking = new AbortController();
  const before = state;
  state = read();
  if (state.article) return showArticle();
  const isReturn = before.article !== undefined;
  back = location.hash || '#/';
  only('browsing');
  document.title = state.q ? `${state.q} - pressmark` : 'pressmark';
  drawFilters();
  // What is wrong, the list tells.
  if (sourceNames.length === 0) sourcesLoaded = loadSources().catch(() => {});
  await Promise.all([
    sourcesLoaded,
    drawnKey === timelineKey() ? undefined : guarded($('timeline'), loadTimeline),
    guarded($('list'), loadList),
  ]);
  if (isReturn && !$('browsing').hidden) ($(`a-${opened}`) ?? $('list-title')).focus();
}

async function loadSources() {
  const all = [];
  let token = '';
  for (let page = 0; page < SOURCE_PAGES_MAX; page += 1) {
    const answer = await ask('sources', { page_size: 1000, page_token: token });
    all.push(...answer.sources);
    token = answer.next_page_token;
    if (!token) break;
  }
  all.sort((a, b) => b.article_count - a.article_count);
  sourceNames = all.map((source) => source.name);
  $('sources').replaceChildren(...all.map((source) => make('option', { value: source.name }, count(source.article_count, 'article'))));
  const more = token ? ' and more' : '';
  const articles = all.reduce((sum, source) => sum + source.article_count, 0);
  $('summary').replaceChildren(articles ? `${count(articles, 'article')} from ${count(all.length, 'source')}${more}` : '');
  $('forget').hidden = !sessionStorage.getItem(TOKEN);
}

// ---- filters

function drawFilters() {
  $('words').value = state.q;
  $('source').value = '';
  $('from').value = state.after;
  $('to').value = state.before ? dayOf(Date.parse(state.before) - DAY) : '';
  $('bucket').value = state.bucket;
  const orders = state.q ? ORDERS.search : ORDERS.list;
  $('order').replaceChildren(...orders.map(([value, name]) => make('option', { value }, name)));
  $('order').value = orders.some(([value]) => value === state.order) ? state.order : '';
  const chip = (name, changes) => make('li', {}, make('button', {
    type: 'button', class: 'remove', 'aria-label': `Remove the filter: ${name}`, click: () => { go(changes); $('words').focus(); },
  }, name));
  const chips = state.source.map((name) => chip(name, { source: state.source.filter((other) => other !== name) }));
  if (state.q) chips.unshift(chip(`words: ${state.q}`, { q: '', order: '' }));
  if (state.after || state.before) {
    const until = state.before ? dayOf(Date.parse(state.before) - DAY) : '';
    const name = state.after === until ? until : [state.after && `from ${state.after}`, until && `to ${until}`].filter(Boolean).join(' ');
    chips.push(chip(name, { after: '', before: '' }));
  }
  if (chips.length > 1) {
    chips.push(make('li', {}, make('button', { type: 'button', class: 'clear', click: clear }, 'Clear all')));
  }
  $('chips').replaceChildren(...chips);
}

const clear = () => { go({ q: '', source: [], after: '', before: '', order: '' }); $('words').focus(); };

// ---- the timeline

let drawnKey = '';
const timelineKey = () => JSON.stringify([state.source, state.after, state.before, state.bucket]);

/** The years with articles, and the largest sources. Where these are too many to count by year, those with the most articles in all. */
async function overview() {
  const starts = (series) => series.flatMap(({ counts }) => counts.map((one) => Date.parse(one.start)));
  const undated = (series) => series.reduce((sum, one) => sum + one.undated_count, 0);
  try {
    const { series } = await ask('timeline', { ...selector(), bucket: 'year', by_source: true });
    const sizes = series.map(({ source, counts }) => [source, counts.reduce((sum, one) => sum + one.article_count, 0)]);
    const names = sizes.filter(([, size]) => size > 0).sort((a, b) => b[1] - a[1]).map(([name]) => name);
    return { names, years: starts(series), undated: undated(series) };
  } catch (error) {
    if (error.reason !== 'TOO_MANY_BUCKETS') throw error;
  }
  const [{ series }] = await Promise.all([ask('timeline', { ...selector(), bucket: 'year' }), sourcesLoaded]);
  return { names: state.source.length > 0 ? state.source : sourceNames, years: starts(series), undated: undated(series) };
}

/** Asks for as much as can be drawn: which sources are the largest, how fine the bars may be, and the counts. */
async function loadTimeline() {
  drawnKey = '';
  const { names, years, undated } = await overview();
  if (years.length === 0) {
    const what = undated ? `${count(undated, 'article')} here, without a date.` : 'Nothing to draw.';
    $('timeline').replaceChildren(make('p', { class: 'empty' }, what));
    return;
  }
  let first = years.reduce((a, b) => Math.min(a, b));
  let end = behind('year', years.reduce((a, b) => Math.max(a, b)));
  const room = Math.max(60, Math.floor(($('timeline').clientWidth - 44) / 5));
  let bucket = state.bucket;
  let total;
  if (!bucket && end - first > 4 * 366 * DAY) {
    bucket = end - first > room * 31 * DAY ? 'year' : 'month';
  } else if (!bucket) {
    total = await counted('day');
    first = Math.min(...total.keys());
    end = Math.max(...total.keys()) + DAY;
    const days = (end - first) / DAY;
    bucket = days <= 2 ? 'hour' : days <= room ? 'day' : days <= 7 * room ? 'week' : 'month';
    if (bucket !== 'day') total = undefined;
  }
  total ??= await counted(bucket);
  const split = new Map(names.slice(0, TOP_SOURCES).map((name) => [name, new Map()]));
  const answer = await ask('timeline', { ...selector(), source: [...split.keys()], bucket, by_source: true });
  for (const { source, counts } of answer.series) {
    if (split.has(source)) split.set(source, new Map(counts.map((one) => [Date.parse(one.start), one.article_count])));
  }
  drawTimeline({ bucket, total, split, undated });
  drawnKey = timelineKey();
}

async function counted(bucket) {
  const answer = await ask('timeline', { ...selector(), bucket });
  return new Map((answer.series[0]?.counts ?? []).map((one) => [Date.parse(one.start), one.article_count]));
}

/** Colours stay with their sources while those are drawn. */
const colours = new Map();
function colourOf(names) {
  for (const name of colours.keys()) if (!names.includes(name)) colours.delete(name);
  for (const name of names) {
    const taken = new Set(colours.values());
    if (!colours.has(name)) colours.set(name, [0, 1, 2, 3, 4].find((colour) => !taken.has(colour)));
  }
  return (name) => colours.get(name) ?? TOP_SOURCES;
}

function drawTimeline({ bucket, total, split, undated }) {
  const colour = colourOf([...split.keys()]);
  const columns = [];
  const end = Math.max(...total.keys());
  for (let at = Math.min(...total.keys()); at <= end && columns.length <= BARS_MAX; at = behind(bucket, at)) {
    const parts = [...split].map(([name, counts]) => [name, counts.get(at) ?? 0]);
    const all = total.get(at) ?? 0;
    const rest = all - parts.reduce((sum, [, size]) => sum + size, 0);
    columns.push({ at, all, parts: [...parts, ['others', Math.max(rest, 0)]].filter(([, size]) => size > 0) });
  }
  if (columns.length > BARS_MAX) {
    const what = `That would be more than ${BARS_MAX.toLocaleString('en')} bars. Choose longer ones, or fewer dates.`;
    $('timeline').replaceChildren(make('p', { class: 'empty' }, what));
    return;
  }
  const readout = make('p', { class: 'readout', 'aria-hidden': 'true' });
  const say = (column) => `${bucketName(bucket, column.at)}: ${count(column.all, 'article')}`
    + (column.parts.length > 0 ? ` (${column.parts.map(([name, size]) => `${name} ${size.toLocaleString('en')}`).join(', ')})` : '');
  const [first, last] = [columns[0], columns[columns.length - 1]].map((column) => bucketName(bucket === 'day' ? 'week' : bucket, column.at).replace('week of ', ''));
  const rest = [
    `${count([...total.values()].reduce((a, b) => a + b, 0), 'article')}, ${first === last ? first : `${first} to ${last}`}`,
    undated ? `, and ${undated.toLocaleString('en')} without a date` : '', state.q ? ', whatever their words' : '',
    bucket === 'hour' ? '.' : '. Choose a bar to see its dates.',
  ].join('');
  readout.textContent = rest;
  const tell = (column) => { readout.textContent = column ? say(column) : rest; };
  const open = (column) => {
    if (bucket === 'hour') return;
    go({ after: dayOf(column.at), before: dayOf(behind(bucket, column.at)), bucket: '' });
    $('list-title').focus();
  };
  const svg = plot(columns, bucket, { colour, say, tell, open });
  const sum = (counts) => [...counts.values()].reduce((a, b) => a + b, 0);
  const sizes = new Map([...split].map(([name, counts]) => [name, sum(counts)]));
  const others = sum(total) - sum(sizes);
  $('timeline').replaceChildren(svg, readout, legend(split, sizes, others, colour), tableOf(columns, bucket, [...split.keys()], others > 0));
  redraw = () => drawTimeline({ bucket, total, split, undated });
}

let redraw = () => {};
let drawnWidth = 0;
new ResizeObserver(() => {
  const width = $('timeline').clientWidth;
  if (width > 0 && Math.abs(width - drawnWidth) > 8 && $('timeline').querySelector('svg')) redraw();
}).observe($('timeline'));

/** A round number that divides an axis into about three. */
function step(most) {
  const rough = Math.max(most / 3, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
}

function plot(columns, bucket, { colour, say, tell, open }) {
  const width = Math.max($('timeline').clientWidth, 260);
  drawnWidth = $('timeline').clientWidth;
  const most = Math.max(...columns.map((column) => column.all), 1);
  const unit = step(most);
  const topValue = Math.max(Math.ceil(most / unit) * unit, 3);
  const left = Math.max(28, topValue.toLocaleString('en').length * 7 + 10);
  const [top, height, low] = [8, width < 500 ? 130 : 170, 22];
  const room = width - left;
  const pitch = Math.min(room / columns.length, 72);
  const gap = pitch > 4 ? Math.min(pitch * 0.2, 6) : 0;
  const y = (value) => top + height - (value / topValue) * height;
  const svg = make('svg:svg', {
    class: 'plot', viewBox: `0 0 ${width} ${top + height + low}`, role: 'group',
    'aria-label': `Articles per ${bucket}. Left and right move from bar to bar${bucket === 'hour' ? '' : ', Enter opens its dates'}.`,
  });
  for (let value = 0; value <= topValue; value += unit) {
    svg.append(
      make('svg:line', { class: value ? 'grid' : 'base', x1: left, x2: width, y1: y(value), y2: y(value) }),
      make('svg:text', { x: left - 8, y: y(value) + 4, 'text-anchor': 'end', 'aria-hidden': 'true' }, value.toLocaleString('en')),
    );
  }
  const every = Math.max(1, Math.ceil((bucket === 'year' || bucket === 'month' ? 46 : 56) / pitch));
  let lastYear;
  columns.forEach((column, number) => {
    const x = left + number * pitch;
    const group = make('svg:g', {
      class: bucket === 'hour' ? 'column' : 'column opens', role: bucket === 'hour' ? 'img' : 'button', 'aria-label': say(column),
      tabindex: number === 0 ? 0 : -1, focus: () => tell(column), blur: () => tell(), mouseenter: () => tell(column), mouseleave: () => tell(),
      click: () => open(column), keydown: (event) => move(event, svg, number, () => open(column)),
    }, make('svg:rect', { class: 'hit', x, y: top, width: pitch, height }));
    let at = 0;
    for (const [name, size] of column.parts) {
      const [from, to] = [y(at), y(at + size)];
      at += size;
      group.append(make('svg:rect', { class: `c${colour(name)}`, x: x + gap / 2, y: to, width: Math.max(pitch - gap, 1), height: Math.max(from - to, 0.5) }));
    }
    svg.append(group);
    if (isTick(bucket, column.at, number, every) && (number + every * 0.6 < columns.length || number === 0)) {
      const year = new Date(column.at).getUTCFullYear();
      const isNew = lastYear !== year && bucket === 'month';
      lastYear = year;
      const text = isNew && bucket === 'month' ? `${year}` : TICKS[bucket].format(column.at);
      const middle = columns.length < 3 || every === 1;
      svg.append(make('svg:text', {
        x: middle ? x + pitch / 2 : x, y: top + height + 17, 'text-anchor': middle ? 'middle' : 'start', 'aria-hidden': 'true',
      }, text));
    }
  });
  return svg;
}

/** Whether a bar has a label, where one in so many may: months have theirs in every year at the same ones. */
function isTick(bucket, at, number, every) {
  if (bucket !== 'month' && bucket !== 'year') return number % every === 0;
  const date = new Date(at);
  if (bucket === 'year') return date.getUTCFullYear() % [1, 2, 5, 10, 20, 50, 100, 1000].find((step) => step >= every) === 0;
  const months = [1, 2, 3, 4, 6, 12].find((step) => step >= every);
  if (months) return date.getUTCMonth() % months === 0;
  return date.getUTCMonth() === 0 && date.getUTCFullYear() % Math.ceil(every / 12) === 0;
}

/** Moves the focus among the bars, of which one is in the order of the Tab key. */
function move(event, svg, number, open) {
  const bars = [...svg.querySelectorAll('.column')];
  const places = { ArrowLeft: number - 1, ArrowRight: number + 1, Home: 0, End: bars.length - 1 };
  if (event.key === 'Enter' || event.key === ' ') {
    event.preventDefault();
    open();
  } else if (event.key in places) {
    event.preventDefault();
    const next = bars[Math.min(Math.max(places[event.key], 0), bars.length - 1)];
    bars[number].setAttribute('tabindex', -1);
    next.setAttribute('tabindex', 0);
    next.focus();
  }
}

function legend(split, sizes, others, colour) {
  const swatch = (number) => make('span', { class: `swatch c${number}` });
  const size = (number) => make('small', {}, number.toLocaleString('en'));
  const items = [...split.keys()].map((name) => {
    const isPressed = state.source.includes(name);
    const source = isPressed ? state.source.filter((other) => other !== name) : [...state.source, name];
    return make('li', {}, make('button', {
      type: 'button', class: 'quiet', 'aria-pressed': String(isPressed), click: () => go({ source }),
    }, swatch(colour(name)), make('span', { dir: 'auto' }, name), size(sizes.get(name))));
  });
  if (others > 0) items.push(make('li', {}, make('span', { class: 'other' }, swatch(TOP_SOURCES), 'others', size(others))));
  return make('ul', { class: 'legend', 'aria-label': 'Sources' }, items);
}

function tableOf(columns, bucket, names, hasOthers) {
  const heads = [...names, ...(hasOthers ? ['others'] : [])];
  const rows = columns.filter((column) => column.all > 0).map((column) => {
    const sizes = new Map(column.parts);
    return make('tr', {}, make('th', { scope: 'row' }, bucketName(bucket, column.at)),
      [column.all, ...heads.map((name) => sizes.get(name) ?? 0)].map((size) => make('td', {}, size.toLocaleString('en'))));
  });
  const head = make('thead', {}, make('tr', {}, [bucket, 'all', ...heads].map((name) => make('th', { scope: 'col' }, name))));
  const table = make('table', {}, make('caption', { class: 'away' }, `Articles per ${bucket} and source`), head, make('tbody', {}, rows));
  return make('details', {}, make('summary', {}, 'The same as a table'),
    make('div', { class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Timeline as a table' }, table));
}

// ---- the list

const parts = (list) => list.map(({ text, is_match: isMatch }) => (isMatch ? make('mark', {}, text) : text));

function item(article, { title = article.title, snippet, tag, isCurrent } = {}) {
  const link = make('a', { href: `#/article/${article.id}`, id: snippet && `a-${article.id}`, dir: 'auto' }, title);
  const author = article.author && make('span', { dir: 'auto' }, article.author);
  const meta = make('p', { class: 'meta' }, make('span', { dir: 'auto' }, article.source), make('span', {}, time(article.published_at)), author,
    tag ? make('span', { class: 'tag' }, tag) : '');
  return make('li', { 'aria-current': isCurrent ? 'true' : undefined }, link, meta,
    snippet && snippet.length > 0 ? make('p', { class: 'snippet', dir: 'auto' }, snippet) : '');
}

async function loadList() {
  $('pager').hidden = true;
  $('count').textContent = '';
  const page = { page_size: PAGE_SIZE, page_token: state.token, order: state.order };
  const answer = state.q
    ? await ask('search', { ...selector(), ...page, q: state.q })
    : await ask('articles', { ...selector(), ...page });
  const items = state.q
    ? answer.hits.map((hit) => item(hit.article, { title: parts(hit.title), snippet: parts(hit.snippet) }))
    : answer.articles.map((article) => item(article, { snippet: [] }));
  const said = state.q ? `${count(answer.hit_count, 'article')} found` : '';
  $('count').textContent = said;
  $('status').textContent = items.length === 0 ? 'No article.' : said || `${count(items.length, 'article')} on this page`;
  if (items.length === 0) return drawEmpty();
  $('list').replaceChildren(make('ol', { class: 'list' }, items));
  const here = addressOf(state, state.token);
  const next = answer.next_page_token && addressOf(state, answer.next_page_token);
  if (next && !pages.has(next)) pages.set(next, { before: here, number: (pages.get(here)?.number ?? 1) + 1 });
  const known = pages.get(here);
  $('pager').hidden = !next && !state.token;
  $('previous').disabled = !state.token;
  $('next').disabled = !next;
  $('page').textContent = known || !state.token ? `Page ${known?.number ?? 1}` : '';
  $('previous').onclick = () => turn(known?.before ?? addressOf(state));
  $('next').onclick = () => turn(next);
}

function turn(address) {
  location.hash = address;
  $('list-title').focus();
  $('list-title').scrollIntoView({ block: 'start' });
}

function drawEmpty() {
  if (isFiltered()) {
    const button = make('button', { type: 'button', click: clear }, 'Clear the filters');
    $('list').replaceChildren(make('div', { class: 'empty' }, make('strong', {}, 'No article matches'), make('p', {}, 'Other words, sources or dates may.'), button));
    return;
  }
  $('list').replaceChildren(make('div', { class: 'empty' }, make('strong', {}, 'This archive is empty'),
    make('p', {}, 'What is stored shows here: ', make('code', {}, 'pressmark import FILE...'))));
}

// ---- one article

async function showArticle() {
  only('reading');
  opened = state.article;
  await guarded($('reading'), async () => {
    const path = `articles/${state.article}`;
    const { article } = await ask(path);
    if (opened === state.article) opened = article.id;
    const title = make('h1', { id: 'title', tabindex: -1, dir: 'auto' }, article.title);
    const about = make('section', { class: 'card', 'aria-labelledby': 'facts-title' }, make('h2', { id: 'facts-title' }, 'In the archive'), facts(article));
    const revisions = make('section', { class: 'card', 'aria-labelledby': 'revisions-title' }, make('h2', { id: 'revisions-title' }, 'Revisions'), make('div'));
    const copies = make('section', { class: 'card', 'aria-labelledby': 'copies-title' }, make('h2', { id: 'copies-title' }, 'Copies'), make('div'));
    $('reading').replaceChildren(
      make('a', { class: 'back', href: back }, 'Back to the list'),
      make('div', { class: 'spread' }, make('article', { class: 'card paper' }, title,
        make('p', { class: 'meta' }, make('span', { dir: 'auto' }, article.source), make('span', {}, time(article.published_at)),
          article.author && make('span', { dir: 'auto' }, article.author)),
        make('div', { class: 'text', dir: 'auto' }, paragraphs(article.body))),
      make('div', {}, about, revisions, copies)),
    );
    document.title = `${article.title} - pressmark`;
    title.focus();
    scrollTo(0, 0);
    const [first, second] = [revisions.lastChild, copies.lastChild];
    await Promise.all([
      guarded(first, async () => drawRevisions(first, article, await ask(`${path}/revisions`, { page_size: 200 }))),
      guarded(second, async () => drawCopies(second, await ask(`articles/${article.id}/copies`, { page_size: 200 }))),
    ]);
  });
  if ($('reading').querySelector('.notice') && !$('reading').querySelector('.back')) {
    $('reading').prepend(make('a', { class: 'back', href: back }, 'Back to the list'));
  }
}

/** The body between empty lines; all else of it shows as it is. */
const paragraphs = (body) => body.trimEnd().split(/\n{2,}/).map((text) => make('p', {}, text));

function facts(article) {
  const rows = [
    ['Id', make('code', {}, article.id)],
    ['Original', original(article.url)],
    ['Published', article.published_at ?? 'undated'],
    ['Stored', `${time(article.archived_at)}, as number ${article.sequence.toLocaleString('en')}`],
    ['Text', bytes(article.text_bytes)],
    ['Hash of the body', make('code', {}, article.body_hash)],
  ];
  return make('dl', { class: 'facts' }, rows.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]));
}

/** A link only where it leads to the web, whatever else a URL may be. */
function original(text) {
  if (!text) return 'no URL';
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== 'http:' && url?.protocol !== 'https:') return text;
  return make('a', { href: url.href, rel: 'noopener noreferrer nofollow', target: '_blank' }, text);
}

function drawRevisions(place, article, { articles, next_page_token: more }) {
  if (articles.length < 2) {
    place.replaceChildren(make('p', { class: 'meta' }, article.url ? 'No other text is stored from its URL.' : 'Without a URL there are none.'));
    return;
  }
  const items = articles.map((one, number) => item(one, {
    tag: one.id === article.id ? `number ${number + 1}, this one` : `number ${number + 1}`, isCurrent: one.id === article.id,
  }));
  place.replaceChildren(make('ol', { class: 'list' }, items), more ? make('p', { class: 'meta' }, 'There are more.') : '');
}

function drawCopies(place, { copies, next_page_token: more, with_near_copies: withNear }) {
  if (copies.length === 0) {
    place.replaceChildren(make('p', { class: 'meta' }, withNear ? 'No other article has this body, or nearly.' : 'No other article has this body. Near copies are not looked for.'));
    return;
  }
  const items = copies.map(({ kind, similarity, article }) => item(article, {
    tag: kind === 'exact' ? 'same body' : `${Math.floor(similarity * 100)} % alike`,
  }));
  place.replaceChildren(make('ol', { class: 'list' }, items), more ? make('p', { class: 'meta' }, 'There are more.') : '');
}

// ---- what people do

function start() {
  $('skip').addEventListener('click', (event) => {
    event.preventDefault();
    ($('reading').hidden ? $('list-title') : $('main')).focus();
  });
  $('sign-in').addEventListener('submit', (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, $('token').value.trim());
    sourceNames = [];
    show().then(() => { if (!$('browsing').hidden) $('words').focus(); });
  });
  $('forget').addEventListener('click', () => {
    sessionStorage.removeItem(TOKEN);
    location.reload();
  });
  $('filters').addEventListener('submit', (event) => {
    event.preventDefault();
    const q = $('words').value.trim();
    go({ q, order: q && state.q ? state.order : '' });
  });
  $('source').addEventListener('change', () => {
    const name = $('source').value.trim();
    if (name && !state.source.includes(name)) go({ source: [...state.source, name] });
  });
  $('from').addEventListener('change', () => go({ after: $('from').value }));
  $('to').addEventListener('change', () => go({ before: $('to').value && dayOf(Date.parse($('to').value) + DAY) }));
  $('order').addEventListener('change', () => go({ order: $('order').value }));
  $('bucket').addEventListener('change', () => go({ bucket: $('bucket').value }));
  addEventListener('hashchange', show);
  show();
}

start();
