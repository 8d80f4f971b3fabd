"use strict";
// The read-out under the pointer: for each curve the value nearest to the pointer.
const readOut = document.getElementById("read-out");
const AXES = ["step", "epoch", "share"];
// The most curves that fit on the screen; those nearest to the pointer are shown.
const MOST = 16;

function nearest(points, axis, at) {
  let best = points[0];
  for (const point of points) {
    if (Math.abs(point[axis] - at) < Math.abs(best[axis] - at)) best = point;
  }
  return best;
}

function shown(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

function row(name, value, color) {
  const line = document.createElement("div");
  const left = document.createElement("span");
  if (color) {
    const dot = document.createElement("i");
    dot.style.background = color;
    left.append(dot);
  }
  left.append(name);
  const right = document.createElement("span");
  right.textContent = value;
  line.append(left, right);
  return line;
}

for (const figure of document.querySelectorAll("figure[data-curves]")) {
  const curves = JSON.parse(figure.dataset.curves);
  for (const plot of figure.querySelectorAll("svg.plot")) {
    const number = (name) => Number(plot.dataset[name]);
    const axis = number("axis"), left = number("left"), right = number("right");
    const cursor = plot.querySelector(".cursor");
    const x = (value) => left + (value / number("high")) * (right - left);
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const down = ((event.clientY - box.top) / box.width) * number("width");
      const up = (number("bottom") - down) / (number("bottom") - number("top"));
      const value = number("floor") + up * (number("ceiling") - number("floor"));
      const inside = ((event.clientX - box.left) / box.width) * number("width");
      const at = Math.min(Math.max((inside - left) / (right - left), 0), 1) * number("high");
      const found = curves.map((curve) => nearest(curve.points, axis, at));
      const closest = found.reduce((a, b) => (Math.abs(b[axis] - at) < Math.abs(a[axis] - at) ? b : a));
      cursor.setAttribute("x1", x(closest[axis]));
      cursor.setAttribute("x2", x(closest[axis]));
      cursor.style.visibility = "visible";
      readOut.replaceChildren(row(AXES[axis], shown(closest[axis])));
      const away = found.map((point) => Math.abs(point[3] - value));
      const limit = [...away].sort((a, b) => a - b)[Math.min(MOST, away.length) - 1];
      curves.forEach((curve, index) => {
        if (away[index] > limit) return;
        const name = "--" + curve.class.split(" ")[0];
        const color = getComputedStyle(document.documentElement).getPropertyValue(name);
        const aside = found[index][0] === closest[0] ? "" : ` (step ${found[index][0]})`;
        readOut.append(row(curve.label + aside, shown(found[index][3]), color));
      });
      readOut.hidden = false;
      const beside = event.clientX + 18 + readOut.offsetWidth > innerWidth ? -readOut.offsetWidth - 18 : 18;
      readOut.style.left = event.clientX + beside + "px";
      readOut.style.top = Math.min(event.clientY + 14, innerHeight - readOut.offsetHeight - 6) + "px";
    });
    plot.addEventListener("pointerleave", () => {
      readOut.hidden = true;
      cursor.style.visibility = "hidden";
    });
  }
}
