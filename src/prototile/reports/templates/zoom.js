(() => {
  const large = document.getElementById("large"), tip = document.getElementById("tip");
  const CLOSEST = 40;
  let svg, whole, view;

  const draw = () => {
    svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
    const box = svg.getBoundingClientRect();
    svg.style.setProperty("--zoom", Math.min(box.width / view.width, box.height / view.height) || 1);
  };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const move = (x, y) => {
    view.x = clamp(x, whole.x, whole.x + whole.width - view.width);
    view.y = clamp(y, whole.y, whole.y + whole.height - view.height);
    draw();
  };
  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const zoom = (factor, at = { x: view.x + view.width / 2, y: view.y + view.height / 2 }) => {
    const width = clamp(view.width / factor, whole.width / CLOSEST, whole.width), scale = width / view.width;
    view.width = width;
    view.height *= scale;
    move(at.x - (at.x - view.x) * scale, at.y - (at.y - view.y) * scale);
  };
  const reset = () => { view = { ...whole }; draw(); };
  const button = (text, label, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  };

  const stage = document.createElement("div");
  stage.className = "stage";
  stage.tabIndex = 0;
  stage.setAttribute("aria-label", "The figure: plus and minus zoom, arrows move, 0 shows all");
  const down = new Map();
  let apart = 0;
  stage.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), place(event)); }, { passive: false });
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); down.set(event.pointerId, event); apart = 0; });
  stage.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    const from = place(down.get(event.pointerId)), to = place(event);
    down.set(event.pointerId, event);
    if (down.size === 1) { move(view.x + from.x - to.x, view.y + from.y - to.y); return; }
    const [a, b] = [...down.values()];
    const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    if (apart) zoom(now / apart, place({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 }));
    apart = now;
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => { down.delete(event.pointerId); apart = 0; });
  stage.addEventListener("dblclick", reset);
  large.addEventListener("keydown", (event) => {
    const step = view.width / 8;
    const keys = {
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset,
      ArrowLeft: () => move(view.x - step, view.y), ArrowRight: () => move(view.x + step, view.y),
      ArrowUp: () => move(view.x, view.y - step), ArrowDown: () => move(view.x, view.y + step),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  large.addEventListener("close", () => { tip.hidden = true; document.body.append(tip); });
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  window.addEventListener("resize", () => { if (large.open) draw(); });

  const open = (figure) => {
    svg = figure.querySelector(".drawing svg").cloneNode(true);
    const { x, y, width, height } = svg.viewBox.baseVal;
    const edge = width / 28; // what is written at the ends of axes reaches beyond them
    whole = { x: x - edge, y: y - edge, width: width + 2 * edge, height: height + 2 * edge };
    const tools = document.createElement("div"), title = document.createElement("h3");
    tools.className = "tools";
    title.textContent = figure.querySelector("h3")?.textContent ?? "";
    const close = button("close", "Close", () => large.close());
    tools.append(title, button("+", "Zoom in", () => zoom(1.5)), button("−", "Zoom out", () => zoom(1 / 1.5)), button("all", "Show all", reset), close);
    stage.replaceChildren(svg);
    const others = [...figure.querySelectorAll(".legend, figcaption")].map((part) => part.cloneNode(true));
    large.replaceChildren(tools, ...others.filter((part) => part.tagName === "UL"), stage, ...others.filter((part) => part.tagName !== "UL"), tip);
    large.showModal();
    stage.focus();
    reset();
  };
  for (const figure of document.querySelectorAll("figure.plot")) {
    const enlarge = button("⤢", `Enlarge: ${figure.querySelector("h3")?.textContent ?? "the figure"}`, () => open(figure));
    enlarge.className = "enlarge";
    figure.append(enlarge);
  }
})();
