"use strict";
// The page of a fact, and the tables of facts and neurons.

const factLink = (fact) => make("a", { href: `#fact=${encodeURIComponent(fact.key)}` }, fact.subject || fact.key);
const neuronLink = (neuron) => make("a", { href: `#search=${neuronName(neuron)}` }, neuronName(neuron));

function list(neurons, most = 6) {
  const shown = neurons.slice(0, most).flatMap((neuron, number) => [number ? " " : "", neuronLink(neuron)]);
  return make("span", {}, ...shown, neurons.length > most ? ` +${neurons.length - most}` : "");
}

const FACT_COLUMNS = [
  { name: "subject", title: "Fact", cell: factLink, value: (fact) => fact.subject || fact.key },
  { name: "relation", title: "Relation", cell: (fact) => fact.relation },
  { name: "object", title: "Answer", cell: (fact) => fact.object },
  { name: "right", title: "Right", number: true, cell: (fact) => percent(fact.right), value: (fact) => fact.right },
  { name: "before", title: "P", number: true, cell: (fact) => probability(fact.before), value: (fact) => fact.before },
  { name: "off", title: "P off", number: true, cell: (fact) => probability(fact.off), value: (fact) => fact.off },
  { name: "random_off", title: "P random off", number: true, cell: (fact) => probability(fact.random_off), value: (fact) => fact.random_off },
  { name: "up", title: "P up", number: true, cell: (fact) => probability(fact.up), value: (fact) => fact.up },
  { name: "prompts", title: "Prompts", number: true, cell: (fact) => whole(fact.prompts), value: (fact) => fact.prompts },
  { name: "n_neurons", title: "Neurons", number: true, cell: (fact) => whole(fact.n_neurons), value: (fact) => fact.n_neurons },
  { name: "neurons", title: "Which", long: true, cell: (fact) => list(fact.neurons), value: (fact) => fact.neurons.map(neuronName).join(" ") },
];

const NEURON_COLUMNS = [
  { name: "layer", title: "Neuron", cell: (one) => neuronLink([one.layer, one.index]), value: (one) => neuronName([one.layer, one.index]) },
  { name: "n_facts", title: "Facts", number: true, cell: (one) => whole(one.n_facts), value: (one) => one.n_facts },
  { name: "n_relations", title: "Relations", number: true, cell: (one) => whole(one.n_relations), value: (one) => one.n_relations },
  { name: "score", title: "Mean attribution", number: true, cell: (one) => digits(one.score), value: (one) => one.score },
  { name: "tokens", title: "Writes to", long: true, cell: (one) => quoted(one.tokens), value: (one) => one.tokens.join(" ") },
];

const quoted = (tokens) => tokens.map((token) => `“${token}”`).join(" ");
const there = (columns, data) => columns.filter(({ name }) => name in data);

class Facts {
  constructor({ facts, neurons, at_once, patterns }) {
    Object.assign(this, { atOnce: at_once, patterns });
    this.rows = rowsOf(facts);
    this.places = new Map(this.rows.map((fact, place) => [fact.key, place]));
    this.readouts = new Map(rowsOf(neurons).map((one) => [neuronName([one.layer, one.index]), one]));
    this.unpacked = new Map();
    this.table = new LongTable(element("facts-table"), {
      caption: "Facts",
      what: "facts",
      columns: there(FACT_COLUMNS, facts),
      rows: this.rows,
      texts: (fact) => [fact.subject, fact.relation, fact.object],
      names: (fact) => [fact.key, ...(fact.neurons ?? []).map(neuronName)],
    });
    this.neurons = new LongTable(element("neurons-table"), {
      caption: "Neurons",
      what: "neurons",
      columns: there(NEURON_COLUMNS, neurons),
      rows: rowsOf(neurons),
      texts: (one) => one.tokens ?? [],
      names: (one) => [neuronName([one.layer, one.index])],
    });
  }

  details(place) {
    const part = Math.floor(place / this.atOnce);
    if (!this.unpacked.has(part)) this.unpacked.set(part, unpack(`facts-${part}`));
    return this.unpacked.get(part).then((facts) => facts[place % this.atOnce]);
  }

  /** Return the page of a fact, as an array of elements; its figures are drawn once they are in the document. */
  async page(place) {
    const fact = this.rows[place];
    const { predictions, scores } = await this.details(place);
    const heading = make("h1", { tabindex: -1, id: "page-title" }, fact.subject ? `${fact.subject}: ${fact.object}` : fact.object);
    return [
      this.steps(place),
      make("p", { class: "over" }, `Fact of relation ${fact.relation}`),
      heading,
      make("p", { class: "lead" }, this.summary(fact)),
      this.predictions(predictions),
      this.neuronsOf(fact, scores),
    ];
  }

  steps(place) {
    const step = (name, to) => (this.rows[to] ? make("a", { href: `#fact=${encodeURIComponent(this.rows[to].key)}` }, name) : null);
    return make("nav", { class: "steps", "aria-label": "Facts" }, make("a", { href: "#facts" }, "All facts"), step("Previous fact", place - 1), step("Next fact", place + 1));
  }

  summary(fact) {
    const said = [`${whole(fact.prompts)} prompts`];
    if (!missing(fact.right)) said.push(`${percent(fact.right)} of the answers are correct`);
    if (!missing(fact.off)) {
      said.push(`mean probability of the answer ${probability(fact.before)}; with its ${whole(fact.n_neurons)} neurons switched off ${probability(fact.off)}`);
      said.push(`with random ones ${probability(fact.random_off)}`, `with its neurons doubled ${probability(fact.up)}`);
    }
    return `${said.join(", ")}.`;
  }

  lacking(stage, what) {
    const summary = make("a", { href: "#summary" }, "the summary");
    return make("p", { class: "note" }, `${what} have not been measured yet (stage ${stage}); `, summary, " has the command that does.");
  }

  predictions(columns) {
    const section = make("section", {}, make("h2", {}, "Predictions with the neurons switched off"));
    if (!columns) return section.append(this.lacking("predictions", "Predictions")), section;
    const rows = rowsOf(columns);
    const names = rows.map((row, number) => plain(`${number + 1}`));
    const height = rows.map((_, row) => rows.length - row);
    const figure = withRows(this.patterns.predictions, names, [
      { x: rows.flatMap((row) => [row.before, row.after, null]), y: height.flatMap((y) => [y, y, null]) },
      ...["before", "after"].map((when) => ({ x: rows.map((row) => row[when]), text: rows.map((row) => plain(row.text)) })),
    ]);
    const drawn = make("div", { class: "plot", role: "img", "aria-label": "Probability of the answer before and after, by prompt; the numbers are in the table.", "data-figure": "predictions" });
    const columnsShown = [
      { title: "", number: true, cell: (row) => whole(row.number) },
      { title: "Prompt", long: true, cell: (row) => row.text },
      { title: "P before", number: true, cell: (row) => probability(row.before) },
      { title: "P after", number: true, cell: (row) => probability(row.after) },
      { title: "Rank before", number: true, cell: (row) => place(row.rank_before) },
      { title: "Rank after", number: true, cell: (row) => place(row.rank_after) },
      { title: "Says before", cell: (row) => row.top_before },
      { title: "Says after", cell: (row) => row.top_after },
    ];
    const numbered = rows.map((row, number) => ({ ...row, number: number + 1 }));
    const meaning = "P: probability of the answer. Rank: its place among all tokens, 1 for the most probable. Says: the most probable token.";
    section.append(drawn, plainTable("Predictions", columnsShown, numbered), make("p", { class: "small" }, meaning));
    plot(drawn, figure);
    return section;
  }

  neuronsOf(fact, columns) {
    const section = make("section", {}, make("h2", {}, "Neurons"));
    const known = (fact.neurons ?? []).map(([layer, index]) => ({ layer, index }));
    const rows = columns ? rowsOf(columns).sort((a, b) => b.score - a.score) : known;
    if (!rows.length) return section.append(make("p", {}, "No neuron is shared by enough of its prompts.")), section;
    if (columns) {
      const names = rows.map((row) => neuronName([row.layer, row.index]));
      const drawn = make("div", { class: "plot", role: "img", "aria-label": "Mean attribution of each neuron with its 95% interval; the numbers are in the table.", "data-figure": "neurons" });
      const bars = { array: rows.map((row) => row.high - row.score), arrayminus: rows.map((row) => row.score - row.low) };
      const pattern = this.patterns.neuron_scores;
      plot(drawn, withRows(pattern, names, [
        { x: rows.map((row) => row.score), text: names, customdata: rows.map((row) => [row.low, row.high]), error_x: { ...pattern.data[0].error_x, ...bars } },
      ]));
      section.append(drawn);
    } else {
      section.append(this.lacking("neuron_scores", "Scores of the neurons"));
    }
    const tokens = (row) => this.readouts.get(neuronName([row.layer, row.index]))?.tokens;
    const shown = [
      { title: "Neuron", when: true, cell: (row) => neuronLink([row.layer, row.index]) },
      { title: "Attribution", number: true, when: columns, cell: (row) => digits(row.score) },
      { title: "95% interval", number: true, when: columns, cell: (row) => (missing(row.low) ? "–" : `${digits(row.low)} to ${digits(row.high)}`) },
      { title: "In prompts", number: true, when: columns, cell: (row) => percent(row.share) },
      { title: "Facts that have it", number: true, when: this.readouts.size, cell: (row) => whole(this.readouts.get(neuronName([row.layer, row.index]))?.n_facts) },
      { title: "Writes to", long: true, when: tokens(rows[0]), cell: (row) => quoted(tokens(row) ?? []) },
    ].filter((column) => column.when);
    section.append(plainTable("Neurons of the fact", shown, rows));
    if (columns) {
      const meaning = "Attribution: mean over the prompts, in probability, with the interval of drawing the prompts anew. In prompts: the share of the prompts that the neuron stands out in.";
      section.append(make("p", { class: "small" }, meaning));
    }
    if (!tokens(rows[0])) section.append(this.lacking("readouts", "Read-outs of the neurons"));
    return section;
  }
}
