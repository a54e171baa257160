"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Theme: the system's, until the reader chooses.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const paint = () => { root.dataset.theme = chosen || (dark.matches ? "dark" : "light"); };
  dark.addEventListener("change", paint);
  document.getElementById("theme").onclick = () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    paint();
  };
  paint();

  const make = (name, attributes = {}, parent = null, text = null) => {
    const node = document.createElement(name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const draw = (name, attributes, parent, text = null) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
  };

  // Panels: one of several parts.
  for (const group of document.querySelectorAll(".panels")) {
    const panels = [...group.children];
    const bar = make("div", { class: "choices", role: "tablist" });
    group.prepend(bar);
    const pick = (index) => panels.forEach((panel, i) => {
      panel.hidden = i !== index;
      bar.children[i].setAttribute("aria-selected", i === index);
    });
    panels.forEach((panel, index) => {
      const button = make("button", { type: "button", role: "tab" }, bar, panel.dataset.title);
      button.onclick = () => pick(index);
      button.onkeydown = (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = (index + step + panels.length) % panels.length;
        pick(next);
        bar.children[next].focus();
      };
    });
    pick(0);
  }

  // The menu marks the section in view.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  if (links.size) {
    const mark = () => {
      let here = null;
      for (const id of links.keys()) {
        if (here === null || document.getElementById(id).getBoundingClientRect().top < 120) here = id;
      }
      if (scrollY > 0 && innerHeight + scrollY >= document.body.scrollHeight - 4) here = [...links.keys()].pop();
      links.forEach((link, id) => link.classList.toggle("here", id === here));
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  }

  // Charts.
  const format = (v) => {
    if (v === 0) return "0";
    const size = Math.abs(v);
    if (size >= 1e6 || size < 1e-4) return v.toExponential(2).replace("e+", "e");
    return size >= 1000 ? v.toLocaleString("en", { maximumFractionDigits: 1 }) : String(+v.toPrecision(4));
  };
  const niceTicks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(+(i * step).toPrecision(12));
    return ticks;
  };
  const logTicks = (low, high) => {
    let ticks = [];
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    for (const digits of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
      ticks = [];
      for (let p = first; p <= last; p++) for (const d of digits) {
        const v = d * 10 ** p;
        if (v >= low * 0.9999 && v <= high * 1.0001) ticks.push(+v.toPrecision(6));
      }
      if (ticks.length >= 3) break;
    }
    const skip = Math.ceil(ticks.length / 8);
    return ticks.length > 1 ? ticks.filter((_, i) => i % skip === 0) : niceTicks(low, high, 4);
  };

  const chart = (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const positive = spec.series.some((s) => s.y.some((v) => v !== null)) &&
      spec.series.every((s) => s.y.every((v) => v === null || v > 0));
    let log = spec.log && positive, zoom = null, off = new Set(), drag = null;

    const head = make("div", { class: "head" });
    make("b", {}, head, spec.title);
    const reset = make("button", { type: "button", hidden: "" }, head, "whole range");
    const toggle = make("button", { type: "button", title: "Logarithmic axis" }, head, "log");
    toggle.hidden = !positive;
    const plot = make("div", { class: "plot" });
    const svg = draw("svg", { role: "img", "aria-label": spec.title + " " + spec.y }, plot);
    const tip = make("div", { class: "tip", hidden: "" }, plot);
    const legend = make("div", { class: "legend" });
    figure.prepend(head, plot, legend);
    if (spec.series.length < 2 && !(spec.series[0] && spec.series[0].name)) legend.hidden = true;

    const color = (s) => `var(--c${s.color})`;
    spec.series.forEach((s, i) => {
      if (s.faint && !s.dashed) return;
      const button = make("button", { type: "button", tabindex: "0", title: "Show or hide" }, legend);
      make("i", { style: `border-color:${color(s)};opacity:${s.faint ? 0.5 : 1}`, class: s.dashed ? "dashed" : "" }, button);
      button.append(s.name);
      button.onclick = () => {
        // Its faint companions of the same colour go with it.
        const mates = spec.series.map((o, j) => j).filter((j) => j === i || (!s.dashed && spec.series[j].faint && !spec.series[j].dashed && spec.series[j].color === s.color));
        const hide = !off.has(i);
        for (const j of mates) if (hide) off.add(j); else off.delete(j);
        button.classList.toggle("off", hide);
        render();
      };
    });
    toggle.onclick = () => { log = !log; render(); };
    const whole = () => { zoom = null; render(); };
    reset.onclick = whole;
    plot.ondblclick = whole;

    let scale = null;
    const render = (width = plot.clientWidth) => {
      if (!width) return;
      const height = Math.max(200, Math.min(280, width * 0.42));
      const box = { left: 52, right: width - 10, top: 8, bottom: height - 34 };
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("height", height);
      svg.replaceChildren();
      toggle.setAttribute("aria-pressed", log);
      reset.hidden = !zoom;
      const shown = spec.series.filter((_, i) => !off.has(i));
      const xs = spec.series.flatMap((s) => s.x);
      if (!xs.length) { draw("text", { x: width / 2, y: height / 2, fill: "var(--soft)", "text-anchor": "middle" }, svg, "no values"); return; }
      let [x0, x1] = zoom || [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))];
      if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
      const ys = shown.flatMap((s) => s.y.filter((v, i) => v !== null && s.x[i] >= x0 && s.x[i] <= x1));
      let [y0, y1] = ys.length ? [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))] : [log ? 0.1 : 0, 1];
      if (log) { const pad = Math.max((y1 / y0) ** 0.05, 1.01); y0 /= pad; y1 *= pad; }
      else { const pad = (y1 - y0) * 0.06 || Math.abs(y1) * 0.05 || 1; const zero = y0 >= 0 && y0 < pad * 2; y0 = zero ? 0 : y0 - pad; y1 += pad; }
      const fy = log ? Math.log10 : (v) => v;
      const px = (v) => box.left + (v - x0) / (x1 - x0) * (box.right - box.left);
      const py = (v) => box.bottom - (fy(v) - fy(y0)) / (fy(y1) - fy(y0)) * (box.bottom - box.top);
      scale = { x0, x1, px, py, box };
      for (const v of log ? logTicks(y0, y1) : niceTicks(y0, y1, 5)) {
        draw("line", { x1: box.left, x2: box.right, y1: py(v), y2: py(v), stroke: "var(--grid)" }, svg);
        draw("text", { x: box.left - 7, y: py(v) + 4, fill: "var(--soft)", "text-anchor": "end" }, svg, format(v));
      }
      for (const v of niceTicks(x0, x1, Math.max(3, Math.min(9, width / 95)))) {
        draw("line", { x1: px(v), x2: px(v), y1: box.bottom, y2: box.bottom + 4, stroke: "var(--line)" }, svg);
        draw("text", { x: px(v), y: box.bottom + 16, fill: "var(--soft)", "text-anchor": "middle" }, svg, format(v));
      }
      draw("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "var(--line)" }, svg);
      if (spec.x) draw("text", { x: (box.left + box.right) / 2, y: height - 3, fill: "var(--soft)", "text-anchor": "middle" }, svg, spec.x);
      if (spec.y) draw("text", { x: 12, y: (box.top + box.bottom) / 2, fill: "var(--soft)", "text-anchor": "middle", transform: `rotate(-90 12 ${(box.top + box.bottom) / 2})` }, svg, spec.y);
      const clip = "k" + Math.random().toString(36).slice(2);
      draw("rect", { x: box.left, y: box.top - 4, width: box.right - box.left, height: box.bottom - box.top + 8 }, draw("clipPath", { id: clip }, draw("defs", {}, svg)));
      const area = draw("g", { "clip-path": `url(#${clip})` }, svg);
      for (const s of shown) {
        let path = "", pen = false;
        s.x.forEach((x, i) => {
          const y = s.y[i];
          if (y === null) {
            pen = false;
            if (x >= x0 && x <= x1) draw("text", { x: px(x), y: box.bottom - 3, fill: "var(--bad)", "text-anchor": "middle" }, area, "×");
            return;
          }
          path += (pen ? "L" : "M") + px(x).toFixed(1) + " " + py(y).toFixed(1);
          pen = true;
        });
        const style = { d: path, fill: "none", stroke: color(s), "stroke-width": s.faint ? (s.dashed ? 1.4 : 1) : 1.8, "stroke-linejoin": "round" };
        if (s.faint) style.opacity = s.dashed ? 0.7 : 0.35;
        if (s.dashed) style["stroke-dasharray"] = "5 4";
        draw("path", style, area);
        if (s.dots || s.x.length === 1) s.x.forEach((x, i) => {
          if (s.y[i] !== null) draw("circle", { cx: px(x), cy: py(s.y[i]), r: 2.8, fill: color(s) }, area);
        });
      }
    };

    const place = (event) => {
      const { left, width } = plot.getBoundingClientRect();
      const { x0, x1, box } = scale;
      const at = Math.max(box.left, Math.min(box.right, (event.clientX - left) * (svg.viewBox.baseVal.width / width)));
      return { at, value: x0 + (at - box.left) / (box.right - box.left) * (x1 - x0) };
    };
    plot.onpointermove = (event) => {
      if (!scale) return;
      svg.querySelectorAll(".hover").forEach((node) => node.remove());
      const { at, value } = place(event);
      const { px, py, box, x0, x1 } = scale;
      if (drag !== null) {
        draw("rect", { class: "hover", x: Math.min(drag.at, at), y: box.top, width: Math.abs(at - drag.at), height: box.bottom - box.top, fill: "var(--accent)", opacity: 0.14 }, svg);
        return;
      }
      const rows = [];
      let nearest = null;
      spec.series.forEach((s, i) => {
        if (off.has(i) || !s.x.length) return;
        let best = -1;
        s.x.forEach((x, j) => { if (x >= x0 && x <= x1 && (best < 0 || Math.abs(x - value) < Math.abs(s.x[best] - value))) best = j; });
        if (best < 0) return;
        if (nearest === null || Math.abs(s.x[best] - value) < Math.abs(nearest - value)) nearest = s.x[best];
        rows.push([s, best]);
      });
      if (nearest === null) { tip.hidden = true; return; }
      draw("line", { class: "hover", x1: px(nearest), x2: px(nearest), y1: box.top, y2: box.bottom, stroke: "var(--soft)", "stroke-dasharray": "2 3" }, svg);
      tip.replaceChildren();
      make("div", { style: "color:var(--soft)" }, tip, (spec.x ? spec.x + " " : "") + format(nearest));
      for (const [s, j] of rows) {
        const far = Math.abs(px(s.x[j]) - px(nearest)) > 14;
        if (far) continue;
        const row = make("div", {}, tip);
        make("i", { style: `border-color:${color(s)};opacity:${s.faint ? 0.4 : 1}`, class: s.dashed ? "dashed" : "" }, row);
        row.append(s.name);
        make("em", {}, row, s.y[j] === null ? "not finite" : format(s.y[j]));
        if (s.y[j] !== null) draw("circle", { class: "hover", cx: px(s.x[j]), cy: py(s.y[j]), r: 3.4, fill: color(s), stroke: "var(--card)" }, svg);
      }
      tip.hidden = false;
      const ratio = plot.clientWidth / svg.viewBox.baseVal.width, spot = px(nearest) * ratio;
      const leftwards = spot + tip.offsetWidth + 20 > plot.clientWidth;
      tip.style.left = (leftwards ? spot - tip.offsetWidth - 14 : spot + 14) + "px";
      tip.style.top = "10px";
    };
    plot.onpointerleave = () => { tip.hidden = true; if (drag === null) svg.querySelectorAll(".hover").forEach((n) => n.remove()); };
    plot.onpointerdown = (event) => {
      if (!scale || event.pointerType === "touch" || event.button) return;
      drag = place(event);
      tip.hidden = true;
      plot.setPointerCapture(event.pointerId);
    };
    plot.onpointerup = (event) => {
      if (drag === null) return;
      const end = place(event), start = drag;
      drag = null;
      const wide = Math.abs(end.value - start.value) > 1e-6 * Math.abs(start.value); // else ticks would be alike
      if (wide && Math.abs(end.at - start.at) > 8) zoom = [Math.min(start.value, end.value), Math.max(start.value, end.value)];
      render();
    };
    plot.onpointercancel = () => { drag = null; render(); };
    new ResizeObserver(() => render()).observe(plot);
    addEventListener("beforeprint", () => render(plot.clientWidth || 660));
    addEventListener("afterprint", () => render());
  };
  for (const figure of document.querySelectorAll("figure.chart")) chart(figure);

  // On paper everything is open.
  const folds = [...document.querySelectorAll("details:not([open], .long)")];
  addEventListener("beforeprint", () => folds.forEach((fold) => { fold.dataset.shut = fold.open ? "" : "1"; fold.open = true; }));
  addEventListener("afterprint", () => folds.forEach((fold) => { if (fold.dataset.shut) fold.open = false; }));
})();
