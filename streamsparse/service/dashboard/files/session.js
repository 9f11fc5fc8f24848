// Who the caller is: the token's dialog, and what the service lets this caller do.

import { getJson, onUnauthorized, path, token } from "./api.js";
import { askInDialog } from "./dialogs.js";
import { element, field } from "./dom.js";

let asking = null;
let isDeclined = false;

/** Ask once, however many requests wait for it; whoever closes the dialog is not asked again until they want to be. */
async function askForToken() {
  if (isDeclined) return false;
  asking ??= askInDialog({
    title: "This service needs a token",
    body: [
      element("p", {}, token.get() ? "The token was not accepted. " : "",
        "Ask whoever runs the service for one; they make it with"),
      element("pre", { class: "command" }, element("code", {}, "streamsparse serve --tokens FILE --new-token NAME")),
      field("Token", element("input", { name: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" }),
        "Kept in this tab until it is closed; sent to this service alone."),
    ],
    confirm: "Use this token",
    submit: async (form) => {
      token.set(form.elements.token.value.trim());
      return true;
    },
  }).finally(() => { asking = null; });
  const given = await asking;
  isDeclined = given !== true;
  showButton();
  return given === true;
}

const tokenButton = () => document.getElementById("token");

function showButton() {
  tokenButton().hidden = token.get() === null && !isDeclined;
  tokenButton().textContent = isDeclined ? "Give a token" : "Forget token";
}

/** Answer 401s with the dialog, and let the token be forgotten. */
export function startSession() {
  onUnauthorized(askForToken);
  tokenButton().addEventListener("click", () => {
    token.forget();
    location.reload();
  });
  showButton();
}

let known = null;

/** What the server offers and the caller may do; asked for once. */
export function service() {
  known ??= getJson(path("service")).catch((error) => {
    known = null;
    throw error;
  });
  return known;
}

export const may = async (scope) => (await service()).scopes.includes(scope);
