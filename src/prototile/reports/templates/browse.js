(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 24, TOLD = 400;
  const make = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const count = (number) => number.toLocaleString("en-US");
  const line = (...parts) => {
    const made = make("p");
    for (const part of parts) made.append(Array.isArray(part) ? make("b", "", part[0]) : part);
    return made;
  };

  const small = (x) => {
    if (x === null) return "–";
    if (x === 0 || x >= 1e-3) return String(x);
    const [mantissa, power] = x.toExponential().split("e");
    return `${mantissa} × 10${[...String(Number(power))].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]).join("")}`;
  };

  const browse = (section, b) => {
    const form = section.querySelector("form"), said = section.querySelector("output");
    const groups = section.querySelector(".groups"), pager = section.querySelector(".pager");
    const places = b.parts.map((_, place) => place);
    const placeOf = new Map(b.parts.map((part, place) => [part, place]));
    let found = places, page = 0, twins;

    const twinsOf = (part) => {
      if (!twins) {
        twins = new Map();
        b.owners.forEach((owner, prototype) => {
          if (!twins.has(owner)) twins.set(owner, []);
          twins.get(owner).push(prototype);
        });
      }
      return twins.get(part) ?? [];
    };
    const owner = (prototype) => placeOf.get(b.owners ? b.owners[prototype] : b.parts[b.representative.indexOf(prototype)]);
    const shown = {
      all: () => true, copies: (i) => b.redundancy[i] > 1, unique: (i) => b.redundancy[i] === 1,
      used: (i) => b.size[i] > 0, empty: (i) => b.size[i] === 0, seen: (i) => i in b.members,
    };

    const search = () => {
      const text = form.elements.find.value.trim().toLowerCase();
      const [, minus, column] = form.elements.order.value.match(/^(-?)(.*)$/);
      const keep = shown[form.elements.show.value], sign = minus ? 1 : -1, values = b[column];
      const wanted = /^\d+$/.test(text) ? owner(Number(text)) : undefined;
      const named = b.classes ? b.classes.map((name) => name.toLowerCase().includes(text)) : [];
      found = places.filter((i) => keep(i) && (!text || i === wanted || (b.majority && named[b.majority[i]])));
      const rank = (i) => (values[i] === null ? Infinity : sign * values[i]);
      found.sort((i, j) => (i === wanted ? -1 : j === wanted ? 1 : rank(i) - rank(j) || i - j));
      page = 0;
      draw();
    };

    const strip = (i) => {
      const made = make("div", "strip");
      for (const row of b.members[i]) {
        const [caption, source] = data.pictures[row];
        const cell = make("span", "cell"), image = make("img", "photo");
        cell.dataset.tip = caption;
        image.alt = caption;
        image.src = source;
        cell.append(image);
        made.append(cell);
      }
      return made;
    };
    const card = (i) => {
      const made = make("article", "group"), head = make("header"), badge = make("span", "badge");
      const copies = b.redundancy[i];
      head.append(make("h3", "", `prototype ${b.representative[i]}`), badge);
      badge.append(make("i", `shade${Math.min(31 - Math.clz32(copies), 5)}`), copies === 1 ? "unique" : `stands for ${count(copies)}`);
      made.append(head);
      if (b.members && i in b.members) made.append(strip(i));
      if (b.size) {
        const times = (b.size[i] * b.unique) / b.images;
        made.append(line([count(b.size[i])], b.size[i] === 1 ? " image" : " images", `, ${times.toPrecision(2)} times the mean`));
      }
      if (b.majority && b.majority[i] >= 0) made.append(line([b.classes[b.majority[i]]], `, ${Math.round(100 * b.purity[i])} % of them`));
      if (b.prototypes > 1) made.append(line("nearest: ", [String(b.closest[i])], ` at ${small(b.nearest[i])}`));
      if (b.norm) made.append(line("norm ", [String(b.norm[i])]));
      if (copies > 1 && b.owners) {
        const same = make("details"), numbers = make("p");
        same.append(make("summary", "", "the same direction"), numbers);
        same.addEventListener("toggle", () => {
          const all = twinsOf(b.parts[i]);
          numbers.textContent = all.slice(0, TOLD).join(", ") + (all.length > TOLD ? ` and ${count(all.length - TOLD)} more` : "");
        });
        made.append(same);
      }
      return made;
    };
    const draw = () => {
      const pages = Math.max(Math.ceil(found.length / PAGE), 1);
      groups.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
      said.textContent = `${count(found.length)} of ${count(b.unique)} groups`;
      pager.hidden = pages === 1;
      pager.querySelector("span").textContent = `page ${count(page + 1)} of ${count(pages)}`;
      const [back, next] = pager.querySelectorAll("button");
      back.disabled = page === 0;
      next.disabled = page === pages - 1;
    };
    pager.addEventListener("click", (event) => {
      const step = Number(event.target.dataset.go);
      if (!step) return;
      page += step;
      draw();
      if (section.getBoundingClientRect().top < 0) section.scrollIntoView();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", search);
    form.hidden = false;
    search();
  };
  for (const section of document.querySelectorAll(".browser")) browse(section, data.heads[section.dataset.head]);
})();
