// Choosing a preset or a verdict hides the other entries; without this script everything is shown.
const form = document.querySelector(".filter");
const items = document.querySelectorAll("article");

function fits(article) {
  return ["room", "held"].every(k => ["", article.dataset[k]].includes(form.elements[k].value));
}

function choose() {
  items.forEach(a => a.hidden = !fits(a));
  document.querySelectorAll("section.room").forEach(
    s => s.hidden = !s.querySelector("article:not([hidden])"));
  const shown = [...items].filter(fits).length;
  form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
}

form.hidden = false;
form.onchange = choose;
choose();

// A link to an entry that is hidden shows everything again.
document.onclick = e => {
  const a = e.target.closest('a[href^="#"]'), to = a && document.getElementById(a.hash.slice(1));
  if (to && to.closest("[hidden]")) { form.reset(); choose(); }
};
