"""A support agent without any framework, as a system of the comparison: it remembers nothing."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from benchmarks.comparison.loop import consume
from benchmarks.comparison.office_client import Office
from benchmarks.comparison.task import Message, Place


def main() -> None:
    place, _ = Place.parse()
    office = Office(place.office)
    tools = {"look_up_account": office.account, "refund": office.refund, "route_to_person": office.route}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def handle(message: Message) -> str:
        conversation: list[dict[str, Any]] = [{"role": "user", "content": message.told}]
        while True:
            body = json.dumps({"model": "any", "messages": conversation}).encode()
            request = urllib.request.Request(
                f"{place.model}/chat/completions", body, headers={"Content-Type": "application/json"}
            )
            with opener.open(request, timeout=30) as answer:
                turn = json.load(answer)["choices"][0]["message"]
            conversation.append(turn)
            if not turn.get("tool_calls"):
                return str(turn["content"])
            for call in turn["tool_calls"]:
                result = tools[call["function"]["name"]](**json.loads(call["function"]["arguments"]))
                conversation.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    consume(place, handle)


if __name__ == "__main__":
    main()
