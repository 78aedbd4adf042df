"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const gap = 14, edge = 8;
    const box = tip.getBoundingClientRect();
    const beside = event.clientX + gap + box.width < window.innerWidth - edge;
    const x = beside ? event.clientX + gap : event.clientX - gap - box.width;
    const y = Math.min(event.clientY + gap, window.innerHeight - box.height - edge);
    tip.style.left = `${Math.max(x, edge)}px`;
    tip.style.top = `${Math.max(y, edge)}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }
})();
