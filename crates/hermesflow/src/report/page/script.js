// Shows the records of the page: filters, searches, orders them, and draws one card each. Everything chosen is kept in the
// address behind '#', so that a view can be linked and survives a reload.
//
// A record: id; t: source of its true picture; c: true caption; o: outcome; k: captions as [text, similarity];
// g: images as {s: source, v: score, a: what each question added to it, r: replies}; q: questions as [question, answer,
// choices]; w: its pair, or null: c: [winning caption, similarity, losing caption, similarity], i: the same of images, each
// by its number in g, or by its source where it is an earlier iteration's.
'use strict';

const PER_PAGE = 20;
const runs = JSON.parse(document.getElementById('runs').textContent);
const form = document.getElementById('filter');
const sets = [...document.querySelectorAll('script.records')].map(place => ({
  place, run: Number(place.dataset.run), iteration: place.dataset.iteration, records: null,
}));
let page = 0;

/** An element with attributes and children; texts are never read as HTML. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

const digits = score => score === null || score === undefined ? '–' : score.toFixed(3);
const isPair = record => record.o === 'pair' || record.o === 'carried over';

function picture(source, text) {
  if (!source) return make('div', { class: 'none' }, 'no picture');
  const image = make('img', { src: source, alt: text, loading: 'lazy' });
  image.addEventListener('load', () => image.classList.toggle('small', image.naturalWidth <= 100));
  return image;
}

/** The records of the chosen run and iteration; read once. */
function chosen() {
  const set = sets[Number(form.elements.set.value)];
  if (!set) return null;
  if (!set.records) {
    set.records = JSON.parse(set.place.textContent);
    for (const record of set.records) {
      const replies = record.g.flatMap(image => image.r || []);
      const words = [record.id, record.c, record.o, ...record.k.map(k => k[0]), ...record.q.flatMap(q => [q[0], q[1]]), ...replies];
      record.words = words.join('\n').toLowerCase();
    }
  }
  return set;
}

function gap(record, side) {
  return record.w ? record.w[side][1] - record.w[side][3] : -1;
}

function best(record) {
  return Math.max(...record.g.map(image => image.v ?? -1), -1);
}

/** The records that the form asks for, in its order. */
function wanted(set) {
  const { outcome, order, text } = form.elements;
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = record =>
    (outcome.value === 'all' || record.o === outcome.value || (outcome.value === 'dropped' && !isPair(record))) &&
    words.every(word => record.words.includes(word));
  const found = set.records.filter(fits);
  if (order.value === 'images') found.sort((a, b) => gap(b, 'i') - gap(a, 'i'));
  if (order.value === 'captions') found.sort((a, b) => gap(b, 'c') - gap(a, 'c'));
  if (order.value === 'worst') found.sort((a, b) => best(a) - best(b));
  return found;
}

/** One of a pair's two images: its number in the record, if it has one, and its source. */
function ofPair(record, which) {
  const image = record.w.i[which];
  return typeof image === 'number' ? { number: image, ...record.g[image] } : { number: null, s: image };
}

/** Questions that the winner was given more for than the loser. */
function deciding(record) {
  if (!record.w) return [];
  const [win, lose] = [ofPair(record, 0), ofPair(record, 2)];
  if (!win.a || !lose.a) return [];
  return record.q.map((asked, at) => ({ asked, at, more: win.a[at] - lose.a[at], win, lose }))
    .filter(one => one.more > 0).sort((a, b) => b.more - a.more);
}

function reply(image, at) {
  const said = image.r && image.r[at];
  return said === undefined || said === null ? 'probability ' + digits(image.a[at]) : '“' + said + '”';
}

/** Why a record taught what it did, or why it was left out, in words. */
function why(record, reasons) {
  if (!record.w || !isPair(record)) {
    const reason = reasons.find(([outcome]) => outcome === record.o);
    let text = 'Not used: ' + (reason ? reason[2] : record.o) + '.';
    const scores = [...new Set(record.g.map(image => image.v).filter(score => score !== null))];
    if (record.o === 'images tie' && scores.length) text += ' All have ' + digits(scores[0]) + '.';
    if (record.o === 'best image below threshold') text += ' Its best has ' + digits(best(record)) + '.';
    return make('p', { class: 'why' }, text);
  }
  const most = deciding(record)[0];
  if (!most) return make('p', { class: 'why' }, 'The preferred image scored ' + digits(record.w.i[1]) + ', the rejected one ' + digits(record.w.i[3]) + '.');
  return make('p', { class: 'why' }, 'Decided most by: ', make('b', {}, most.asked[0]), ' Right is “' + most.asked[1] + '”. Of the preferred image the model said ',
    make('span', { class: 'win' }, reply(most.win, most.at)), ', of the rejected one ', make('span', { class: 'lose' }, reply(most.lose, most.at)), '.');
}

function trio(record) {
  const figure = (source, text, kind, caption) => make('figure', {}, picture(source, text), make('figcaption', { class: kind }, caption));
  const parts = [figure(record.t, 'the true picture', '', 'the true picture')];
  const texts = make('div', { class: 'texts' });
  const said = (kind, title, text, score) => make('p', { class: 'said-of' }, make('b', { class: kind }, title + ' ' + digits(score)), make('span', {}, text));
  if (record.w) {
    const [win, lose] = [ofPair(record, 0), ofPair(record, 2)];
    parts.push(figure(win.s, 'the preferred image', 'win', '✓ preferred: ' + digits(record.w.i[1])));
    parts.push(figure(lose.s, 'the rejected image', 'lose', '✗ rejected: ' + digits(record.w.i[3])));
    texts.append(said('win', '✓ preferred caption, similarity', record.w.c[0], record.w.c[1]), said('lose', '✗ rejected caption, similarity', record.w.c[2], record.w.c[3]));
  } else {
    const order = ranked(record.g.map(image => image.v));
    const ends = order.length > 1 ? [order[0], order[order.length - 1]] : order;
    ends.forEach((at, end) => parts.push(figure(record.g[at].s, 'an image of the caption', '', (end ? 'its worst: ' : 'its best: ') + digits(record.g[at].v))));
    const captions = ranked(record.k.map(one => one[1]));
    const shown = captions.length > 1 ? [captions[0], captions[captions.length - 1]] : captions;
    shown.forEach((at, end) => texts.append(said('', end ? 'its worst caption, similarity' : 'its best caption, similarity', record.k[at][0], record.k[at][1])));
  }
  parts.push(texts);
  return make('div', { class: 'trio' }, parts);
}

/** Numbers of scores, the highest first. */
function ranked(scores) {
  return scores.map((_, at) => at).sort((a, b) => (scores[b] ?? -2) - (scores[a] ?? -2));
}

function questions(record) {
  const pair = record.w && [ofPair(record, 0), ofPair(record, 2)].filter(image => image.a);
  const order = ranked(record.g.map(image => image.v));
  const shown = pair && pair.length === 2 ? pair : [order[0], order[order.length - 1]].filter(at => at !== undefined).map(at => record.g[at]).filter(image => image.a);
  const names = pair && pair.length === 2 ? ['about the preferred image', 'about the rejected image'] : ['about its best image', 'about its worst image'];
  const table = make('table', {}, make('thead', {}, make('tr', {}, ['question', 'right', ...names.slice(0, shown.length)].map(name => make('th', {}, name)))));
  const body = make('tbody');
  record.q.forEach(([question, answer, choices], at) => {
    const cells = shown.map(image => {
      const right = image.a[at] > 0 && (image.r && image.r.length ? true : image.a[at] >= 0.5);
      const weight = image.a[at] > 0 && image.a[at] < 0.9995 && image.r && image.r.length ? ' (' + digits(image.a[at]) + ')' : '';
      return make('td', { class: right ? 'win' : 'lose' }, (right ? '✓ ' : '✗ ') + reply(image, at) + weight);
    });
    const decided = shown.length === 2 && shown[0].a[at] > 0 && shown[1].a[at] === 0;
    body.append(make('tr', decided ? { class: 'decided' } : {}, make('td', {}, question, make('small', {}, choices.join(' · '))), make('td', {}, answer), cells));
  });
  table.append(body);
  const missing = shown.length ? null : make('p', { class: 'note' }, 'The answers were not kept; `hermesflow answer` keeps them since this version.');
  return make('details', { class: 'questions' }, make('summary', {}, 'Questions and answers (' + record.q.length + ')'), make('div', { class: 'wide' }, table), missing);
}

function candidates(record) {
  const images = ranked(record.g.map(image => image.v)).map(at => {
    const image = record.g[at];
    const kind = record.w && record.w.i[0] === at ? 'win' : record.w && record.w.i[2] === at ? 'lose' : '';
    const right = image.r && image.r.length && image.a ? ' · ' + image.a.filter(count => count > 0).length + ' of ' + image.a.length : '';
    return make('figure', {}, picture(image.s, 'image ' + at), make('figcaption', { class: kind }, digits(image.v) + right));
  });
  const captions = ranked(record.k.map(one => one[1])).map(at => {
    const [text, score] = record.k[at];
    const kind = record.w && record.w.c[0] === text ? 'win' : record.w && record.w.c[2] === text ? 'lose' : '';
    return make('li', { class: kind }, make('b', {}, digits(score)), text);
  });
  return make('details', { class: 'candidates' }, make('summary', {}, 'All candidates, ranked (' + images.length + ' images, ' + captions.length + ' captions)'),
    make('div', { class: 'grid' }, images), make('ol', { class: 'captions' }, captions));
}

function card(record, reasons) {
  const pair = isPair(record);
  const chip = make('span', { class: 'chip ' + (pair ? 'pair' : 'dropped') }, record.o === 'pair' ? 'taught the model' : record.o);
  return make('article', { class: 'card', 'data-id': record.id },
    make('h3', {}, make('span', {}, '“' + record.c + '”'), chip, make('span', { class: 'id' }, record.id)),
    why(record, reasons), trio(record),
    record.q.length ? questions(record) : null,
    record.g.length || record.k.length ? candidates(record) : null);
}

/** What can be shown of the chosen iteration. */
function offer(set) {
  const reasons = runs[set.run].reasons[set.iteration] || [];
  const before = form.elements.outcome.value || 'all';
  const all = reasons.reduce((sum, one) => sum + one[1], 0);
  const dropped = reasons.filter(one => one[0] !== 'pair' && one[0] !== 'carried over');
  const options = [['all', 'everything (' + all + ')'], ...reasons.map(([outcome, count]) => [outcome, (outcome === 'pair' ? 'pairs' : outcome) + ' (' + count + ')'])];
  if (dropped.length > 1) options.push(['dropped', 'all that was not used (' + dropped.reduce((sum, one) => sum + one[1], 0) + ')']);
  form.elements.outcome.replaceChildren(...options.map(([value, text]) => make('option', { value }, text)));
  form.elements.outcome.value = options.some(([value]) => value === before) ? before : 'all';
  return reasons;
}

function show() {
  const set = chosen();
  const cards = document.getElementById('cards');
  if (!set) {
    cards.replaceChildren();
    document.getElementById('count').textContent = 'There are no records yet.';
    document.getElementById('pager').hidden = true;
    return;
  }
  const reasons = offer(set);
  const found = wanted(set);
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const shown = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  cards.replaceChildren(...shown.map(record => card(record, reasons)));
  document.getElementById('count').textContent = found.length + ' of ' + set.records.length + ' records';
  document.getElementById('place').textContent = (page + 1) + ' of ' + pages;
  document.getElementById('previous').disabled = page === 0;
  document.getElementById('next').disabled = page >= pages - 1;
  const state = new URLSearchParams(new FormData(form));
  if (page) state.set('page', page);
  history.replaceState(null, '', '#pairs?' + state);
}

function turn(by) {
  page += by;
  show();
  document.getElementById('pairs').scrollIntoView();
}

/** Begins with what the address asks for. */
function begin() {
  const name = set => (runs.length > 1 ? runs[set.run].name + ', ' : '') + 'iteration ' + set.iteration;
  form.elements.set.replaceChildren(...sets.map((set, at) => make('option', { value: at }, name(set))));
  const asked = new URLSearchParams(location.hash.split('?')[1] || '');
  const filled = sets.findIndex(set => set.place.textContent.trim() !== '[\n\n]' && set.place.textContent.length > 4);
  form.elements.set.value = asked.get('set') || Math.max(filled, 0);
  if (!sets[Number(form.elements.set.value)]) form.elements.set.value = 0;
  const set = chosen();
  if (set) offer(set);
  for (const field of ['outcome', 'order', 'text']) {
    if (asked.get(field)) form.elements[field].value = asked.get(field);
  }
  page = Number(asked.get('page')) || 0;
  const here = location.hash;
  show();
  // A link to one record: #pairs?text=ID&open=1
  if (asked.get('open')) document.querySelectorAll('.card:first-child details').forEach(one => { one.open = true; });
  if (here.startsWith('#pairs')) document.getElementById('pairs').scrollIntoView({ behavior: 'instant' });
  if (!here.startsWith('#pairs')) history.replaceState(null, '', here || location.pathname + location.search);
}

let waiting = 0;
form.addEventListener('input', () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { page = 0; show(); }, 120);
});
form.addEventListener('submit', event => event.preventDefault());
document.getElementById('previous').addEventListener('click', () => turn(-1));
document.getElementById('next').addEventListener('click', () => turn(1));
begin();

// A page that is served asks whether there is a newer one, and reloads: where it is and what is chosen stays.
if (document.body.dataset.watched === 'yes') {
  let version = null;
  setInterval(async () => {
    try {
      const now = await (await fetch('/version')).text();
      if (version !== null && now !== version && !document.querySelector('details[open]')) location.reload();
      version = now;
    } catch { /* the server has ended; the page stays as it is */ }
  }, 3000);
}
