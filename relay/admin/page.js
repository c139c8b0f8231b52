
"use strict";
// Polls /status and puts its words where the server put them when it rendered this page.
(() => {
  const EVERY_MS = 2000;
  const TIMEOUT_MS = 5000;
  const at = (id) => document.getElementById(id);
  const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  let spoken = at("lead").textContent.split(":")[0];

  const showFacts = (facts) => [...at("facts").children].forEach((node, i) => {
    const fact = facts[i];
    node.dataset.tone = fact.tone;
    say(node.querySelector("strong"), fact.value);
    say(node.querySelector("span"), fact.note);
    if (fact.share !== null) node.querySelector(".used").setAttribute("width", (fact.share * 100).toFixed(1));
  });

  const showChart = (chart) => {
    at("chart-line").setAttribute("d", chart.line);
    at("chart-area").setAttribute("d", chart.area);
    at("chart").setAttribute("aria-label", chart.description);
    say(at("chart-top"), chart.top);
  };

  const makeRow = (columns, cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, i) => {
      const node = row.insertCell();
      node.dataset.label = columns[i].name;
      if (columns[i].number) node.className = "number";
      if (cell.tone) node.dataset.tone = cell.tone;
      node.textContent = cell.text;
    });
    return row;
  };

  const showTable = (name, table) => {
    const section = at(name);
    section.querySelector("tbody").replaceChildren(...table.rows.map((cells) => makeRow(table.columns, cells)));
    section.querySelector("table").hidden = table.rows.length === 0;
    section.querySelector(".empty").hidden = table.rows.length > 0;
    say(section.querySelector(".note"), table.note);
  };

  const show = ({ headline, view }) => {
    document.title = view.title;
    at("headline").dataset.tone = headline.tone;
    say(at("lead"), headline.lead);
    say(at("rest"), headline.rest);
    showFacts(view.facts);
    showChart(view.chart);
    for (const name of ["lanes", "attempts", "dead_letters"]) showTable(name, view[name]);
    say(at("footer"), view.footer);
    // A screen reader hears a change of state, not every count-down.
    const state = headline.lead.split(":")[0];
    if (state !== spoken) say(at("spoken"), `${headline.lead} ${headline.rest}`);
    spoken = state;
  };

  let since = new Date();
  const markStale = (stale) => {
    document.querySelector("main").classList.toggle("is-stale", stale);
    at("stale").hidden = !stale;
    if (!stale) { since = new Date(); return; }
    document.title = "no answer · event relay";
    say(at("stale"), `The relay has not answered this page since ${since.toLocaleTimeString()}. What you see is from then.`);
  };

  const poll = async () => {
    try {
      const answer = await fetch("/status", { signal: AbortSignal.timeout(TIMEOUT_MS) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      show(await answer.json());
      markStale(false);
    } catch {
      markStale(true);
    }
    setTimeout(poll, EVERY_MS);
  };
  setTimeout(poll, EVERY_MS);
})();
