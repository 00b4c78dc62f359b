// Loads the model and builds the page for it.
import { Explorer } from "./explorer.js";
import { Model } from "./model.js";
import { View } from "./view.js";

async function main() {
  const message = document.getElementById("message");
  try {
    const explorer = new Explorer(await Model.load());
    const view = new View(explorer);
    document.querySelector("main").hidden = false;
    message.textContent = "";
    if (!(await view.restoreLink())) {
      await (explorer.examples.length
        ? explorer.chooseExample(0)
        : explorer.update("decode", "plane"));
    }
    return explorer;
  } catch (error) {
    message.textContent = `The page failed: ${error.message ?? error}`;
    throw error;
  }
}

const ready = main();
window.addEventListener("unhandledrejection", ({ reason }) => {
  document.getElementById("message").textContent = `The page failed: ${reason?.message ?? reason}`;
});
// for tests and for the browser's console
window.explorer = {
  ready: ready.then(() => true),
  state: async () => (await ready).state(),
  idle: async () => {
    await (await ready).running;
  },
};
