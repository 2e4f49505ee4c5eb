"""The support agent with AutoGen: an `AssistantAgent`, each customer's state saved to a file after each message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import TextMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

from benchmarks.comparison.loop import consume
from benchmarks.comparison.office_client import Office
from benchmarks.comparison.task import INSTRUCTIONS, Message, Place


def main() -> None:
    """The command line; runs until it is killed."""
    place, _ = Place.parse()
    office = Office(place.office)
    client = OpenAIChatCompletionClient(model="gpt-4o-mini", base_url=place.model, api_key="none")

    def look_up_account(customer: str) -> str:
        """Looks a customer's account up."""
        return office.account(customer)

    def refund(customer: str, amount: int, reference: str) -> str:
        """Pays an amount in EUR back to a customer."""
        return office.refund(customer, amount, reference)

    def route_to_person(customer: str, queue: str, reference: str) -> str:
        """Hands a message over to a person."""
        return office.route(customer, queue, reference)

    async def converse(message: Message, state: dict[str, Any] | None) -> tuple[str, Mapping[str, Any]]:
        agent = AssistantAgent(
            "support",
            client,
            tools=[look_up_account, refund, route_to_person],
            system_message=INSTRUCTIONS,
            max_tool_iterations=10,
        )
        if state is not None:
            await agent.load_state(state)
        result = await agent.run(task=message.told)
        answer = result.messages[-1]
        assert isinstance(answer, TextMessage), answer
        return answer.content, await agent.save_state()

    with asyncio.Runner() as runner:

        def handle(message: Message) -> str:
            file = Path(place.folder, f"{message.customer}.json")
            text, state = runner.run(converse(message, json.loads(file.read_text()) if file.exists() else None))
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps(state))
            fresh.replace(file)
            return text

        consume(place, handle)


if __name__ == "__main__":
    main()
