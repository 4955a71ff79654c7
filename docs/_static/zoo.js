// The table of weights: a click on a heading sorts, the form filters.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.getElementById("zoo");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const column = name => heads.findIndex(head => head.textContent === name);
  const text = (row, name) => row.cells[column(name)].textContent;
  const field = id => document.getElementById("zoo-" + id).value.trim();

  function filter() {
    const [name, license] = [field("name").toLowerCase(), field("license")];
    const limits = [["GFLOPs", "flops", 1], ["top-1 %", "top1", -1], ["ms", "ms", 1]]
      .filter(([, id]) => field(id) !== "")
      .map(([title, id, sign]) => [title, Number(field(id)), sign]);
    let shown = 0;
    for (const row of rows) {
      const terms = text(row, "license");
      // Where a figure is not known, a limit on it is not met.
      const fits = text(row, "weights").toLowerCase().includes(name)
        && (!license || terms === license || (license === "*" && "free" in row.dataset))
        && limits.every(([title, limit, sign]) =>
          text(row, title) !== "" && sign * Number(text(row, title)) <= sign * limit);
      row.hidden = !fits;
      shown += fits;
    }
    document.getElementById("zoo-count").textContent = `${shown} of ${rows.length}`;
  }

  function sort(head) {
    const at = heads.indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[at].textContent;
    const compare = head.dataset.kind === "number"
      ? (a, b) => (key(a) === "") - (key(b) === "") || (up ? 1 : -1) * (key(a) - key(b))
      : (a, b) => (up ? 1 : -1) * key(a).localeCompare(key(b));
    rows.sort(compare).forEach(row => body.append(row));
  }

  heads.forEach(head => head.addEventListener("click", () => sort(head)));
  document.querySelector("form.zoo").addEventListener("input", filter);
  filter();
});
