"""The support agent with CrewAI: a Flow whose state, one for each customer, `@persist` keeps in SQLite."""

from __future__ import annotations

from crewai import LLM, Agent
from crewai.flow.flow import Flow, FlowState, start
from crewai.flow.persistence import SQLiteFlowPersistence, persist
from crewai.tools import tool
from pydantic import Field

from benchmarks.comparison.loop import consume
from benchmarks.comparison.office_client import Office
from benchmarks.comparison.task import INSTRUCTIONS, Message, Place


class Conversation(FlowState):
    """What is kept for a customer; its id is the customer's."""

    reference: str = ""
    told: str = ""
    answered: dict[str, str] = Field(default_factory=dict)
    history: list[dict[str, str]] = Field(default_factory=list)


def main() -> None:
    """The command line; runs until it is killed."""
    place, _ = Place.parse()
    office = Office(place.office)

    @tool("look_up_account")
    def look_up_account(customer: str) -> str:
        """Looks a customer's account up."""
        return office.account(customer)

    @tool("refund")
    def refund(customer: str, amount: int, reference: str) -> str:
        """Pays an amount in EUR back to a customer."""
        return office.refund(customer, amount, reference)

    @tool("route_to_person")
    def route_to_person(customer: str, queue: str, reference: str) -> str:
        """Hands a message over to a person."""
        return office.route(customer, queue, reference)

    llm = LLM(model="openai/gpt-4o-mini", base_url=place.model, api_key="none")
    tools = [look_up_account, refund, route_to_person]

    @persist(SQLiteFlowPersistence(f"{place.folder}/flows.db"))
    class Support(Flow[Conversation]):
        """Answers one message."""

        @start()
        async def answer(self) -> str:
            """Runs the agent, unless the message was answered already."""
            state = self.state
            if state.reference not in state.answered:
                agent = Agent(
                    role="Support agent",
                    goal="Settle what customers write",
                    backstory=INSTRUCTIONS,
                    llm=llm,
                    tools=tools,
                )
                asked = {"role": "user", "content": state.told}
                text = (await agent.kickoff_async([*state.history, asked])).raw
                state.history += [asked, {"role": "assistant", "content": text}]
                state.answered[state.reference] = text
            return state.answered[state.reference]

    def handle(message: Message) -> str:
        inputs = {"id": message.customer, "reference": message.reference, "told": message.told}
        return str(Support().kickoff(inputs=inputs))

    consume(place, handle)


if __name__ == "__main__":
    main()
