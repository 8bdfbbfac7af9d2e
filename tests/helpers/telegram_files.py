"""The strict Bot API server with files: documents that people send, and pictures that the bot sends."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.helpers.telegram_server import TOKEN, TelegramServer
from tests.helpers.telegram_world import ME, Chat, Object, bad

PNG = b"\x89PNG\r\n\x1a\n"
MAX_DOWNLOAD_BYTES = 20_000_000


class TelegramFileServer(TelegramServer):
    """A server that also knows `getFile`, its downloads, and `sendPhoto`."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, bytes] = {}

    async def send_file(self, chat: Chat, user: Object, name: str, data: bytes, caption: str) -> Object:
        """Let a person send a document with words beside it."""
        file_id = f"file-{len(self._files)}"
        self._files[file_id] = data
        document = {"file_id": file_id, "file_unique_id": f"u{file_id}", "file_name": name, "file_size": len(data)}
        return await self.say(chat, user, "", document=document, caption=caption)

    async def forge(self, user: Object, message: Object, data: str) -> None:
        """Let a person's own client press a button that was never shown."""
        query_id = str(88_000_000 + next(self._numbers))
        self._queries.add(query_id)
        await self.update(
            callback_query={"id": query_id, "from": user, "chat_instance": "1", "data": data, "message": message}
        )

    def pictures(self, chat: Chat) -> list[Object]:
        """Return the pictures the bot has sent."""
        return [message for message in self.sent(chat) if "photo" in message]

    def texts(self, chat: Chat, topic: int | None = None) -> list[str]:
        return [message["text"] for message in self.sent(chat) if "text" in message]

    def _app(self) -> web.Application:
        app = super()._app()
        app.router.add_get("/file/bot{token}/{file_id}", self._download)
        return app

    async def _download(self, request: web.Request) -> web.Response:
        if request.match_info["token"] != TOKEN or request.match_info["file_id"] not in self._files:
            return web.Response(status=404)
        return web.Response(body=self._files[request.match_info["file_id"]])

    def _do_getfile(self, parameters: Object) -> Object:
        file_id = parameters.get("file_id", "")
        if file_id not in self._files:
            raise bad("invalid file_id")
        if len(self._files[file_id]) > MAX_DOWNLOAD_BYTES:
            raise bad("file is too big")
        size = len(self._files[file_id])
        return {"file_id": file_id, "file_unique_id": f"u{file_id}", "file_size": size, "file_path": file_id}

    def _do_sendphoto(self, parameters: dict[str, Any]) -> Object:
        chat = self._writable(parameters)
        photo = parameters.get("photo")
        data = photo.file.read() if isinstance(photo, web.FileField) else b""
        if not data.startswith(PNG):
            raise bad("IMAGE_PROCESS_FAILED")
        if len(parameters.get("caption") or "") > 1024:
            raise bad("message caption is too long")
        self._checked_flood(chat)
        message = self._new_message(chat, dict(ME), "", self._checked_topic(chat, parameters), None)
        size = {"file_id": "p", "file_unique_id": "up", "width": 700, "height": 400, "file_size": len(data)}
        message |= {"photo": [size], "caption": parameters.get("caption") or ""}
        chat.messages[message["message_id"]] = message
        return message
