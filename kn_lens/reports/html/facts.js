"use strict";
// The tables of facts and neurons, and the page of a fact.

const factAddress = (fact) => `#fact=${encodeURIComponent(fact.key)}`;

function factLink(fact) {
  return makeElement("a", { href: factAddress(fact) }, fact.subject || fact.key);
}

function neuronLink(neuron) {
  const name = neuronName(neuron);
  return makeElement("a", { href: `#search=${name}` }, name);
}

/** Return links to the first neurons of a list of keys, and the number of the others. */
function neuronLinks(neurons, nShown = 6) {
  const parts = [];
  for (const key of neurons.slice(0, nShown)) {
    if (parts.length) {
      parts.push(" ");
    }
    parts.push(neuronLink(neuronOfKey(key)));
  }
  if (neurons.length > nShown) {
    parts.push(` +${neurons.length - nShown}`);
  }
  return makeElement("span", {}, ...parts);
}

const quoteTokens = (tokens) => tokens.map((token) => `“${token}”`).join(" ");

/** Return a column of numbers with the name of the property that it shows. */
function numberColumn(name, title, format) {
  return { name, title, isNumber: true, cell: (row) => format(row[name]), value: (row) => row[name] };
}

const FACT_COLUMNS = [
  { name: "subject", title: "Fact", cell: factLink, value: (fact) => fact.subject || fact.key },
  { name: "relation", title: "Relation", cell: (fact) => fact.relation },
  { name: "object", title: "Answer", cell: (fact) => fact.object },
  numberColumn("right", "Correct", formatPercent),
  numberColumn("before", "P", formatProbability),
  numberColumn("off", "P suppressed", formatProbability),
  numberColumn("random_off", "P random", formatProbability),
  numberColumn("up", "P amplified", formatProbability),
  numberColumn("prompts", "Prompts", formatCount),
  numberColumn("n_neurons", "Neurons", formatCount),
  {
    name: "neurons",
    title: "Names",
    isLong: true,
    cell: (fact) => neuronLinks(fact.neurons),
    value: (fact) => fact.neurons.map((key) => neuronName(neuronOfKey(key))).join(" "),
  },
];

const NEURON_COLUMNS = [
  {
    name: "layer",
    title: "Neuron",
    cell: (neuron) => neuronLink(neuron),
    value: (neuron) => neuronName(neuron),
  },
  numberColumn("n_facts", "Facts", formatCount),
  numberColumn("n_relations", "Relations", formatCount),
  numberColumn("score", "Mean attribution", formatScore),
  {
    name: "tokens",
    title: "Promotes",
    isLong: true,
    cell: (neuron) => quoteTokens(neuron.tokens),
    value: (neuron) => neuron.tokens.join(" "),
  },
];

const PREDICTION_COLUMNS = [
  { title: "No.", isNumber: true, cell: (prompt) => formatCount(prompt.number) },
  { title: "Prompt", isLong: true, cell: (prompt) => prompt.text },
  { title: "P before", isNumber: true, cell: (prompt) => formatProbability(prompt.before) },
  { title: "P after", isNumber: true, cell: (prompt) => formatProbability(prompt.after) },
  { title: "Rank before", isNumber: true, cell: (prompt) => formatRank(prompt.rank_before) },
  { title: "Rank after", isNumber: true, cell: (prompt) => formatRank(prompt.rank_after) },
  { title: "Top token before", cell: (prompt) => prompt.top_before },
  { title: "Top token after", cell: (prompt) => prompt.top_after },
];

/** Words for neuron sets, for the facts on which they are measured, and for kinds of texts. */
const NEURON_SET_LABELS = {
  found: "its knowledge neurons",
  activation: "as many most active neurons",
  random: "random neurons of the same layers",
};
const SCOPE_LABELS = { own: "this fact", other: "a fact of another relation" };
const TEXT_LABELS = { "head and tail": "subject and answer", "head only": "subject only", random: "a random sentence" };

/** Return a probability and, relative to the one before, its change. */
function formatChanged(after, before) {
  if (isMissing(after) || isMissing(before) || before === 0) {
    return formatProbability(after);
  }
  const percent = Math.round(100 * (after / before - 1));
  const sign = percent > 0 ? "+" : "−";
  return `${formatProbability(after)} (${percent ? sign : ""}${Math.abs(percent)}%)`;
}

const EFFECT_COLUMNS = [
  { title: "Neurons", cell: (row) => NEURON_SET_LABELS[row.neuron_set] },
  { title: "Measured on", cell: (row) => SCOPE_LABELS[row.scope] },
  { title: "P", isNumber: true, cell: (row) => formatProbability(row.before) },
  { title: "P suppressed", isNumber: true, cell: (row) => formatChanged(row.suppressed, row.before) },
  { title: "P amplified", isNumber: true, cell: (row) => formatChanged(row.amplified, row.before) },
];

const TEXT_COLUMNS = [
  { title: "Activation", isNumber: true, cell: (row) => formatScore(row.found) },
  { title: "Text as the model reads it", isLong: true, cell: (row) => row.text },
  { title: "Word not read", cell: (row) => row.word },
  { title: "Contains", cell: (row) => TEXT_LABELS[row.texts] ?? row.texts },
];

const EFFECT_NOTE =
  "P: mean probability of the answer over the prompts. Suppressed: activations times 0; amplified: times 2. " +
  "In brackets: the relative change.";
const READOUT_NOTE = "The tokens of highest logit when the model's head reads the neuron's row of W_out alone.";
const TEXT_NOTE = "Activation: mean over the fact's knowledge neurons, at the word that the model does not read.";

const PREDICTION_NOTE =
  "P: probability of the answer. Rank: its rank among all tokens, 1 for the most probable. " +
  "Top token: the most probable token.";
const SCORE_NOTE =
  "Attribution: mean over the prompts, in probability; the interval resamples the prompts. " +
  "Prompts: the share of the prompts in which the neuron stands out.";

const SCORE_COLUMNS = [
  { title: "Attribution", isNumber: true, cell: (neuron) => formatScore(neuron.score) },
  { title: "95% interval", isNumber: true, cell: (neuron) => formatInterval(neuron.low, neuron.high) },
  { title: "Prompts", isNumber: true, cell: (neuron) => formatPercent(neuron.share) },
];

function formatInterval(low, high) {
  return isMissing(low) ? DASH : `${formatScore(low)} to ${formatScore(high)}`;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Return what the figure of a fact's predictions shows, in words. */
function describePredictions(prompts) {
  if (!prompts.length) {
    return "A figure without prompts.";
  }
  const change = (prompt) => Math.abs(prompt.after - prompt.before);
  const furthest = prompts.reduce((first, second) => (change(second) > change(first) ? second : first));
  const nFallen = prompts.filter((prompt) => prompt.after < prompt.before).length;
  const before = formatProbability(mean(prompts.map((prompt) => prompt.before)));
  const after = formatProbability(mean(prompts.map((prompt) => prompt.after)));
  return (
    `Dot plot of the probability of the answer in ${formatCount(prompts.length)} prompts: ${before} before and ` +
    `${after} with the neurons suppressed, on average; it falls in ${formatCount(nFallen)} of them. It changes most in ` +
    `prompt ${furthest.number}, from ${formatProbability(furthest.before)} to ${formatProbability(furthest.after)}. ` +
    "All numbers are in the table below."
  );
}

/** Return what the figure of the scores of a fact's neurons shows, in words. */
function describeScores(neurons) {
  const values = neurons.map((neuron) => {
    const interval = isMissing(neuron.low) ? "" : ` (${formatInterval(neuron.low, neuron.high)})`;
    return `${neuronName(neuron)} ${formatScore(neuron.score)}${interval}`;
  });
  return `Dot plot of the mean attribution of each neuron, with 95% intervals: ${values.join("; ")}.`;
}

/** Return the columns that the data has. */
const availableColumns = (columns, data) => columns.filter((column) => column.name in data);

/** Return the container of a figure of a fact's page. */
function figureContainer(name, label) {
  return makeElement("div", { class: "plot", role: "img", "aria-label": label, "data-figure": name });
}

const NO_NEURONS = "No neuron is shared by enough of its prompts.";

/** Return the neurons of a fact: those of highest scores first, where there are scores. */
function neuronsOf(fact, scoreColumns) {
  if (scoreColumns) {
    return rowsOf(scoreColumns).sort((first, second) => second.score - first.score);
  }
  return (fact.neurons ?? []).map(neuronOfKey);
}

/** Return a section of a fact's page, with its title. */
function newSection(name, title) {
  const heading = makeElement("h2", { id: `fact-${name}-title` }, title);
  return makeElement("section", { id: `fact-${name}`, "aria-labelledby": heading.id }, heading);
}

const smallNote = (text) => makeElement("p", { class: "small" }, text);

/** Return a note about records that are missing, with a link to the command that computes them. */
function missingNote(content, stage) {
  const summaryLink = makeElement("a", { href: "#summary" }, "summary");
  const text = `${content} have not been measured yet (stage ${stage}). The `;
  return makeElement("p", { class: "note" }, text, summaryLink, " has the command that computes them.");
}

/** The facts and neurons of the report: their tables, and the pages of facts. */
class Facts {
  constructor({ facts, neurons, facts_at_once, patterns }) {
    this.factsAtOnce = facts_at_once;
    this.patterns = patterns;
    this.rows = rowsOf(facts);
    this.numberOf = new Map(this.rows.map((fact, number) => [fact.key, number]));
    this.unpackedParts = new Map();

    const neuronRows = rowsOf(neurons);
    this.neuronByName = new Map(neuronRows.map((neuron) => [neuronName(neuron), neuron]));
    this.factTable = new LongTable(element("facts-table"), {
      caption: "Facts",
      rowsName: "facts",
      columns: availableColumns(FACT_COLUMNS, facts),
      rows: this.rows,
      texts: (fact) => [fact.subject, fact.relation, fact.object],
      names: (fact) => [fact.key, ...(fact.neurons ?? []).map((key) => neuronName(neuronOfKey(key)))],
    });
    this.neuronTable = new LongTable(element("neurons-table"), {
      caption: "Neurons",
      rowsName: "neurons",
      columns: availableColumns(NEURON_COLUMNS, neurons),
      rows: neuronRows,
      texts: (neuron) => neuron.tokens ?? [],
      names: (neuron) => [neuronName(neuron)],
    });
  }

  /** Return the predictions and scores of a fact. Facts are unpacked in groups, each once. */
  async details(number) {
    const part = Math.floor(number / this.factsAtOnce);
    if (!this.unpackedParts.has(part)) {
      this.unpackedParts.set(part, unpack(`facts-${part}`));
    }
    const facts = await this.unpackedParts.get(part);
    return facts[number % this.factsAtOnce];
  }

  /** Return the elements of a fact's page. Its figures are drawn once they are in the document. */
  async page(number) {
    const fact = this.rows[number];
    const { predictions, scores, effects, texts } = await this.details(number);
    const title = fact.subject ? `${fact.subject}: ${fact.object}` : fact.object;
    return [
      this.navigation(number),
      makeElement("p", { class: "over" }, `Fact of relation ${fact.relation}`),
      makeElement("h1", { tabindex: -1, id: "page-title" }, title),
      makeElement("p", { class: "lead" }, this.summary(fact)),
      makeElement("div", { class: "beside" }, this.effectsSection(effects), this.readoutsSection(fact, scores)),
      this.textsSection(texts),
      this.predictionsSection(predictions),
      this.neuronsSection(fact, scores),
    ];
  }

  navigation(number) {
    const links = [makeElement("a", { href: "#facts", "aria-keyshortcuts": "Escape" }, "All facts (Esc)")];
    const neighbours = { "Previous fact": this.rows[number - 1], "Next fact": this.rows[number + 1] };
    for (const [label, fact] of Object.entries(neighbours)) {
      if (fact) {
        links.push(makeElement("a", { href: factAddress(fact) }, label));
      }
    }
    return makeElement("nav", { class: "steps", "aria-label": "Facts" }, ...links);
  }

  summary(fact) {
    const parts = [`${formatCount(fact.prompts)} prompts`];
    if (!isMissing(fact.right)) {
      parts.push(`${formatPercent(fact.right)} of the answers are correct`);
    }
    if (!isMissing(fact.off)) {
      const suppressed = formatProbability(fact.off);
      parts.push(
        `mean probability of the answer ${formatProbability(fact.before)}`,
        `${suppressed} with its ${formatCount(fact.n_neurons)} neurons suppressed`,
        `${formatProbability(fact.random_off)} with random ones suppressed`,
        `${formatProbability(fact.up)} with its neurons amplified`,
      );
    }
    return `${parts.join(", ")}.`;
  }

  effectsSection(columns) {
    const section = newSection("effects", "Effects of its neurons");
    if (!columns) {
      section.append(missingNote("Effects", "effects"));
    } else if (!columns.neuron_set.length) {
      section.append(makeElement("p", {}, "No effect was measured for this fact."));
    } else {
      section.append(plainTable("Effects", EFFECT_COLUMNS, rowsOf(columns)), smallNote(EFFECT_NOTE));
    }
    return section;
  }

  readoutsSection(fact, scoreColumns) {
    const section = newSection("readouts", "What its neurons promote");
    const neurons = neuronsOf(fact, scoreColumns);
    if (!neurons.length) {
      section.append(makeElement("p", {}, NO_NEURONS));
      return section;
    }
    if (this.readout(neurons[0]) === undefined) {
      section.append(missingNote("Read-outs of the neurons", "readouts"));
      return section;
    }
    const columns = [
      { title: "Neuron", cell: (neuron) => neuronLink(neuron) },
      { title: "Promotes", isLong: true, cell: (neuron) => quoteTokens(this.readout(neuron) ?? []) },
    ];
    section.append(plainTable("Tokens that the neurons promote", columns, neurons), smallNote(READOUT_NOTE));
    return section;
  }

  textsSection(columns) {
    const section = newSection("texts", "Texts that activate its neurons");
    if (!columns) {
      section.append(missingNote("Texts", "texts"));
      return section;
    }
    const texts = rowsOf(columns);
    if (!texts.length) {
      section.append(makeElement("p", {}, "No text about this fact was read."));
      return section;
    }
    for (const [end, title] of [["top", "Most"], ["bottom", "Least"]]) {
      const rows = texts.filter((text) => text.end === end);
      if (rows.length) {
        const heading = makeElement("h3", {}, title);
        section.append(heading, plainTable(`Texts that activate its neurons: ${title.toLowerCase()}`, TEXT_COLUMNS, rows));
      }
    }
    section.append(smallNote(TEXT_NOTE));
    return section;
  }

  predictionsSection(columns) {
    const section = newSection("predictions", "Predictions with the neurons suppressed");
    if (!columns) {
      section.append(missingNote("Predictions", "predictions"));
      return section;
    }
    const prompts = rowsOf(columns).map((prompt, index) => ({ ...prompt, number: index + 1 }));
    const container = figureContainer("predictions", describePredictions(prompts));
    section.append(
      container,
      plainTable("Predictions", PREDICTION_COLUMNS, prompts),
      smallNote(PREDICTION_NOTE),
    );
    addFigure(container, this.predictionsFigure(prompts));
    return section;
  }

  predictionsFigure(prompts) {
    const heights = rowHeights(prompts.length);
    const texts = prompts.map((prompt) => escapeForPlotly(prompt.text));
    // Plotly ends a line at null, so that each prompt gets a line of its own from before to after.
    const changes = {
      x: prompts.flatMap((prompt) => [prompt.before, prompt.after, null]),
      y: heights.flatMap((height) => [height, height, null]),
    };
    const before = { x: prompts.map((prompt) => prompt.before), text: texts };
    const after = { x: prompts.map((prompt) => prompt.after), text: texts };
    const names = prompts.map((prompt) => String(prompt.number));
    return figureWithRows(this.patterns.predictions, names, [changes, before, after]);
  }

  neuronsSection(fact, scoreColumns) {
    const section = newSection("neurons", "Neurons");
    const neurons = neuronsOf(fact, scoreColumns);
    if (!neurons.length) {
      section.append(makeElement("p", {}, NO_NEURONS));
      return section;
    }
    if (scoreColumns) {
      const container = figureContainer("neurons", describeScores(neurons));
      section.append(container);
      addFigure(container, this.scoresFigure(neurons));
    } else {
      section.append(missingNote("Scores of the neurons", "neuron_scores"));
    }
    section.append(plainTable("Neurons of the fact", this.neuronColumns(Boolean(scoreColumns)), neurons));
    if (scoreColumns) {
      section.append(smallNote(SCORE_NOTE));
    }
    return section;
  }

  scoresFigure(neurons) {
    const pattern = this.patterns.neuron_scores;
    const names = neurons.map((neuron) => neuronName(neuron));
    const trace = {
      x: neurons.map((neuron) => neuron.score),
      text: names,
      customdata: neurons.map((neuron) => [neuron.low, neuron.high]),
      error_x: {
        ...pattern.data[0].error_x,
        array: neurons.map((neuron) => neuron.high - neuron.score),
        arrayminus: neurons.map((neuron) => neuron.score - neuron.low),
      },
    };
    return figureWithRows(pattern, names, [trace]);
  }

  neuronColumns(hasScores) {
    const columns = [{ title: "Neuron", cell: (neuron) => neuronLink(neuron) }];
    if (hasScores) {
      columns.push(...SCORE_COLUMNS);
    }
    if (this.neuronByName.size) {
      const nFacts = (neuron) => this.neuronByName.get(neuronName(neuron))?.n_facts;
      columns.push({ title: "Facts that have it", isNumber: true, cell: (neuron) => formatCount(nFacts(neuron)) });
    }
    return columns;
  }

  /** Return the tokens that a neuron promotes; undefined without a read-out. */
  readout(neuron) {
    return this.neuronByName.get(neuronName(neuron))?.tokens;
  }
}
